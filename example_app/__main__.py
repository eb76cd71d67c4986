"""``python -m example_app`` runs one batch as a tour; ``serve [PORT]`` runs the app until Ctrl-C."""

from __future__ import annotations

import sys


def main() -> int:
    try:
        # Imported here, so that Ctrl-C during the import is handled, too.
        from example_app.tour import serve, tour

        match sys.argv[1:]:
            case []:
                tour()
            case ["serve"]:
                serve()
            case ["serve", port] if port.isdigit():
                serve(int(port))
            case _:
                print("usage: python -m example_app [serve [PORT]]", file=sys.stderr)
                return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


sys.exit(main())
