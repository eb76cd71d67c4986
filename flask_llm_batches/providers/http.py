"""Restricts the HTTP clients of the SDKs: no redirects to other hosts, no cookies, and no endless answers.

By default they follow redirects to any host. They send the requests of an upload there, and the key if it has
its own header. They also keep cookies, and read and unpack an answer of any size into memory.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

from flask_llm_batches.providers.downloads import ACCEPTED, unpack

_ENCODING = "Accept-Encoding"
_MOST = 32 * 1024 * 1024
"""The most bytes of an answer that is not a download. A page of 100 batches has about 100 KB."""

_FIRST = "flask_llm_batches_first"

_dates: ContextVar[list[str] | None] = ContextVar("llm_batches_dates", default=None)


class RedirectRefused(Exception):
    """A provider redirected a call to another origin, or a call that is not a GET."""


class AnswerTooLarge(Exception):
    """A provider's answer is larger than any that makes sense."""


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


async def _ask_for_gzip(request: Any) -> None:
    """Ask for no encoding that ``unpack`` does not know. A download names its own."""
    if request.headers.get(_ENCODING) != ACCEPTED[_ENCODING]:
        request.headers[_ENCODING] = "gzip, identity"


async def _limit(response: Any) -> None:
    """Limit the bytes of an answer, once they are unpacked. Those of a download are read in pieces."""
    if response.request.headers.get(_ENCODING) == ACCEPTED[_ENCODING]:
        return
    encoding, stream = response.headers.pop("Content-Encoding", ""), response.stream

    async def limited() -> AsyncGenerator[bytes, None]:
        size = 0
        async for piece in unpack(encoding, stream):
            size += len(piece)
            if size > _MOST:
                raise AnswerTooLarge(f"an answer has more than {_MOST} bytes")
            yield piece

    library = type(response).__module__.partition(".")[0]
    response.stream = _limited_stream(library)(limited(), stream)


@cache
def _limited_stream(library: str) -> Any:
    """Return the class of our streams for ``httpx`` or ``httpx2``, which check its base class."""

    class LimitedStream(sys.modules[library].AsyncByteStream):  # type: ignore[misc]  # known at run time only
        def __init__(self, pieces: AsyncGenerator[bytes, None], stream: Any) -> None:
            self._pieces = pieces
            self._stream = stream

        def __aiter__(self) -> AsyncGenerator[bytes, None]:
            return self._pieces

        async def aclose(self) -> None:
            await self._stream.aclose()

    return LimitedStream


def guard(client: Any, *, limited: bool) -> None:
    """Make an httpx client follow only redirects of a GET within its origin, and keep no cookies.

    Args:
        client: The client.
        limited: Whether answers that are not downloads have a limit of bytes.
    """
    hooks = getattr(client, "event_hooks", None)
    if hooks is not None and _refuse_redirect not in hooks["request"]:
        client.event_hooks = _with_ours(hooks)
        if limited:
            client.event_hooks["request"].append(_ask_for_gzip)
            client.event_hooks["response"].insert(0, _limit)  # the host's hooks may read the answer
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
