"""Restricts the HTTP clients of the SDKs: no redirects to other hosts, and no cookies.

By default they follow redirects to any host. They send the requests of an upload there, and the key if it has
its own header. They also keep cookies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

_FIRST = "flask_llm_batches_first"

_dates: ContextVar[list[str] | None] = ContextVar("llm_batches_dates", default=None)


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


@contextmanager
def noted_dates() -> Iterator[list[str]]:
    """Collect the ``Date`` of the responses that the block gets."""
    dates: list[str] = []
    token = _dates.set(dates)
    try:
        yield dates
    finally:
        _dates.reset(token)


async def _note_date(response: Any) -> None:
    dates, date = _dates.get(), response.headers.get("Date")
    if dates is not None and date is not None:
        dates.append(date)


def guard(client: Any) -> None:
    """Make an httpx client follow only redirects of a GET within its origin, and keep no cookies."""
    hooks = getattr(client, "event_hooks", None)
    if hooks is not None and _refuse_redirect not in hooks["request"]:
        client.event_hooks = _with_ours(hooks)
        client.cookies.jar.set_policy(_NoCookies())


def guarded_args(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of such a client: ``given``, and what ``guard`` would set."""
    return {
        "cookies": CookieJar(_NoCookies()),
        **given,
        "event_hooks": _with_ours(given.get("event_hooks") or {}),
    }


def _with_ours(hooks: dict[str, Any]) -> dict[str, Any]:
    return {
        **hooks,
        "request": [*hooks.get("request", ()), _refuse_redirect],
        "response": [*hooks.get("response", ()), _note_date],
    }
