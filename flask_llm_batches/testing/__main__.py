"""``python -m flask_llm_batches.testing``: runs a simulated provider and prints its settings."""

from __future__ import annotations

import argparse
import json
import threading

from flask_llm_batches.testing import Simulator


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flask_llm_batches.testing", description=__doc__)
    parser.add_argument(
        "--port", type=int, default=0, help="the port to listen on, on 127.0.0.1; a free one by default"
    )
    parser.add_argument(
        "--seconds", type=float, help="how long a batch runs after its first retrieval; endless by default"
    )
    options = parser.parse_args()
    with Simulator(port=options.port, seconds=options.seconds) as simulator:
        print(simulator.base_url)
        providers = json.dumps(simulator.providers)
        print(f"LLM_BATCHES_PROVIDERS = {providers}")
        print(f"export FLASK_LLM_BATCHES_PROVIDERS='{providers}'", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


main()
