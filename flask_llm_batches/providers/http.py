"""Restricts the HTTP clients of the SDKs: no redirects to other hosts, and no cookies.

By default they follow redirects to any host. They send the requests of an upload there, and the key if it has
its own header. They also keep cookies.
"""

from __future__ import annotations

from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

_FIRST = "flask_llm_batches_first"


class RedirectRefused(Exception):
    """A provider redirected a call to another origin, or a call that is not a GET."""


class _NoCookies(DefaultCookiePolicy):
    """Keeps no cookies of responses. Cookies that the host gave to its own client are still sent."""

    def set_ok(self, *_: object) -> bool:
        return False


async def _refuse_redirect(request: Any) -> None:
    """Raise an error for a redirected request, unless it is a GET within its origin."""
    here = (request.method, request.url.scheme, request.url.host, request.url.port)
    # A redirected request has the extensions of the first one.
    first = request.extensions.setdefault(_FIRST, here)
    if first is not here and (first[0] != "GET" or first != here):
        raise RedirectRefused(f"a {first[0]} was redirected to {request.url}")


def guard(client: Any) -> None:
    """Make an httpx client follow only redirects of a GET within its origin, and keep no cookies."""
    hooks = getattr(client, "event_hooks", None)
    if hooks is not None and _refuse_redirect not in hooks["request"]:
        client.event_hooks = {**hooks, "request": [*hooks["request"], _refuse_redirect]}
        client.cookies.jar.set_policy(_NoCookies())


def guarded_args(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of such a client: ``given``, and what ``guard`` would set."""
    hooks = given.get("event_hooks") or {}
    return {
        "cookies": CookieJar(_NoCookies()),
        **given,
        "event_hooks": {**hooks, "request": [*hooks.get("request", ()), _refuse_redirect]},
    }
