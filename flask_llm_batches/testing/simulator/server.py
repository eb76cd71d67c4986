"""An HTTP/1.1 server on loopback. Its connections stay open, and can be dropped."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Generator
from typing import IO, TYPE_CHECKING, Any, cast

from werkzeug.exceptions import ClientDisconnected
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.test import run_wsgi_app
from werkzeug.wsgi import LimitedStream

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment


class _Handler(WSGIRequestHandler):
    """Reads the whole body: werkzeug's own handler does not, and so must close every connection."""

    server: _Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def run_wsgi(self) -> None:
        environ = self.make_environ()
        if not environ.get("wsgi.input_terminated"):
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"] = LimitedStream(cast("IO[bytes]", self.rfile), length)
        try:
            body, status, headers = run_wsgi_app(self.server.app, environ)
            while environ["wsgi.input"].read(1 << 16):
                pass
            code, _, reason = status.partition(" ")
            self.send_response(int(code), reason)
            for name, value in headers.items():
                self.send_header(name, value)
            # Without a length and chunks, the connection marks the end, and the reader cannot detect a cut.
            self.close_connection = headers.get("Connection") == "close"
            chunked = "Content-Length" not in headers and not self.close_connection
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            # This tells the app if its body was not sent to the end.
            with contextlib.closing(cast("Generator[bytes]", body)):
                if self.command != "HEAD":
                    self._send(body, chunked=chunked)
        except (ConnectionError, ClientDisconnected):
            self.close_connection = True

    def _send(self, body: Any, *, chunked: bool) -> None:
        for part in body:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked and part else part)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_request(self, *_: Any) -> None:
        """Log nothing: ``Simulator.calls`` has every call."""


class _Listener(ThreadedWSGIServer):
    request_queue_size = 128

    def __init__(self, port: int, app: WSGIApplication) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__("127.0.0.1", port, app, handler=_Handler)


class Server:
    """A WSGI app on 127.0.0.1, in a thread of its own."""

    def __init__(self, port: int, app: WSGIApplication) -> None:
        self._listener = _Listener(port, app)
        self.port: int = self._listener.server_port
        self._thread = threading.Thread(
            target=self._listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._listener.shutdown()
        self._listener.server_close()
        for connection in list(self._listener.connections):
            _hang_up(connection)

    def drop(self, environ: WSGIEnvironment) -> None:
        """Close the connection of a request."""
        _hang_up(environ["werkzeug.socket"])

    def pause(self, environ: WSGIEnvironment, seconds: float) -> None:
        """Send nothing for so many seconds.

        Raises:
            ConnectionResetError: The caller hung up, or the server stops.
        """
        # A caller that waits for a response sends nothing. If there is something to read, it is the end.
        with selectors.DefaultSelector() as selector:
            selector.register(environ["werkzeug.socket"], selectors.EVENT_READ)
            if selector.select(seconds):
                raise ConnectionResetError


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side has closed it
