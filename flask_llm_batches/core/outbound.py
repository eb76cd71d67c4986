"""Posts to URLs of other servers, at public addresses only."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from functools import cache
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Any, NamedTuple

import httpcore

_NAT64 = IPv6Network("64:ff9b::/96")  # https://www.rfc-editor.org/rfc/rfc6052
_MAX_ADDRESSES = 3
_SECONDS = 15.0  # from the look-up of the name to the end of the answer's headers


class AddressNotPublic(OSError):
    """A host name has no public address."""


class Posted(NamedTuple):
    """The answer to a POST.

    Attributes:
        status: The HTTP status.
        retry_after: Its Retry-After header; empty without one.
    """

    status: int
    retry_after: str


def post(url: str, headers: Mapping[str, str], body: bytes, *, allow_private: bool) -> Posted:
    """Post to a URL once. Redirects are not followed, proxies not used, and the answer's body is not read.

    The address is checked when the connection is made, so an earlier address of the name does not matter.

    Args:
        url: The URL.
        headers: Headers besides those of HTTP itself.
        body: JSON.
        allow_private: Whether it may be an address that is not public.

    Raises:
        OSError: The name is not known, or ``AddressNotPublic``.
        httpcore.NetworkError: There is no connection.
        httpcore.ProtocolError: The answer is not HTTP.
        httpcore.TimeoutException: The answer took too long.
    """
    network = _Network(allow_private=allow_private)
    usual = [("Content-Type", "application/json"), ("User-Agent", "flask-llm-batches")]
    with (
        httpcore.ConnectionPool(ssl_context=_tls(), network_backend=network) as pool,
        pool.stream("POST", url, headers=[*usual, *headers.items()], content=body) as response,
    ):
        retry_after = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"")
        return Posted(response.status, retry_after.decode("latin-1"))


def is_public(address: str) -> bool:
    """Return whether an IP address is that of a host in the public internet.

    Args:
        address: IPv4 or IPv6. If an IPv6 address contains an IPv4 address, the IPv4 address decides.
    """
    ip = ip_address(address)
    if ip.version == 6:
        nat64 = IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        inner = ip.ipv4_mapped or ip.sixtofour or nat64
        if ip.teredo is not None or ip.is_site_local:
            return False
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


@cache
def _tls() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


class _Network(httpcore.NetworkBackend):
    """Connects to the addresses that it has checked."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._ends_at = time.monotonic() + _SECONDS
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # httpcore's; ours is for the whole call
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(one[4][0]) for one in found)
        allowed = [one for one in addresses if self._allow_private or is_public(one)]
        if not allowed:
            raise AddressNotPublic("not a public address")
        for number, address in enumerate(allowed[:_MAX_ADDRESSES], 1):
            try:
                stream = self._sockets.connect_tcp(
                    address, port, _left(self._ends_at), local_address, socket_options
                )
            except httpcore.NetworkError:
                if number == len(allowed[:_MAX_ADDRESSES]):
                    raise
            else:
                return _Stream(stream, self._ends_at)
        raise AssertionError  # the last one returns or raises


class _Stream(httpcore.NetworkStream):
    """A connection with a deadline, however slowly the other side sends."""

    def __init__(self, stream: httpcore.NetworkStream, ends_at: float) -> None:
        self._stream = stream
        self._ends_at = ends_at

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, _left(self._ends_at))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, _left(self._ends_at))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._ends_at))
        return _Stream(stream, self._ends_at)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(ends_at: float) -> float:
    left = ends_at - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("The answer took too long")
    return left
