"""What providers may have our HTTP clients do: nothing but answer.

The clients of the SDKs follow redirects to any host, with the key where it has a header of its own, and with
the requests of an upload; and they keep cookies.
"""

from __future__ import annotations

from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

_FIRST = "flask_llm_batches_first"


class RedirectRefused(Exception):
    """A provider redirected a call elsewhere, or one that must not be made twice."""


class _NoCookies(DefaultCookiePolicy):
    """Keeps no cookie of an answer. Those that a host gave its own client are sent as before."""

    def set_ok(self, *_: object) -> bool:
        return False


async def _stay(request: Any) -> None:
    """Refuse to follow a redirect, unless it is of a GET and within its origin."""
    here = (request.method, request.url.scheme, request.url.host, request.url.port)
    first = request.extensions.setdefault(
        _FIRST, here
    )  # what follows a redirect has those of what it follows
    if first is not here and (first[0] != "GET" or first != here):
        raise RedirectRefused(f"a {first[0]} was redirected to {request.url}")


def guard(client: Any) -> None:
    """Have an httpx client follow no redirect but those of a GET within its origin, and keep no cookies."""
    hooks = getattr(client, "event_hooks", None)
    if hooks is not None and _stay not in hooks["request"]:
        client.event_hooks = {**hooks, "request": [*hooks["request"], _stay]}
        client.cookies.jar.set_policy(_NoCookies())


def guarded_args(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for such a client: those given and what ``guard`` sees to."""
    hooks = given.get("event_hooks") or {}
    return {
        "cookies": CookieJar(_NoCookies()),
        **given,
        "event_hooks": {**hooks, "request": [*hooks.get("request", ()), _stay]},
    }
