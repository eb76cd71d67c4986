"""Providers that the simulator does not have, as far as the tests need them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

CREATED = "2026-01-01T00:00:00Z"


@dataclass
class Others:
    """Together and Gemini on loopback.

    Attributes:
        url: Where they listen.
        created: How many batches were created.
        sent: What was sent there: method, path and body.
        answers: What a GET is answered, by the end of its path: JSON, or lines as bytes.
        create: What a create at Together is answered, if not with a batch: status and JSON.
        headers: Further headers of every answer.
        redirect: Where every GET is redirected to, if it is.
        got: The headers of every call.
    """

    url: str
    created: int = 0
    sent: list[tuple[str, str, bytes]] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    create: tuple[int, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    redirect: str | None = None
    got: list[Mapping[str, str]] = field(default_factory=list)


@contextmanager
def running() -> Iterator[Others]:
    """Run them."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        others = Others(f"http://127.0.0.1:{server.server_port}")
        server.others = others  # type: ignore[attr-defined]  # the handler looks there
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield others
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    @property
    def others(self) -> Others:
        others: Others = self.server.others  # type: ignore[attr-defined]
        return others

    def new_id(self) -> str:
        self.others.created += 1
        return f"b{self.others.created}"

    def do_GET(self) -> None:
        if self.others.redirect is not None:
            self.answer(307, {}, {"Location": self.others.redirect})
            return
        self.answer(200, next(body for end, body in self.others.answers.items() if self.path.endswith(end)))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.others.sent.append((self.command, self.path, body))
        if self.path == "/files":
            headers = {"Location": f"{self.others.url}/put", "X-Together-File-Id": "file-1"}
            self.answer(302, {}, headers)
        elif self.path == "/batches":
            job = {"id": self.new_id(), "status": "VALIDATING", "created_at": CREATED}
            made = {"job": {**job, "endpoint": "/v1/chat/completions"}}
            self.answer(*(self.others.create or (200, made)))
        elif self.path.endswith(":batchGenerateContent"):
            state = {"state": "BATCH_STATE_PENDING", "createTime": CREATED}
            self.answer(200, {"name": f"batches/{self.new_id()}", "metadata": state})
        else:
            file = {"id": "file-1", "object": "file", "created_at": 1, "filename": "in.jsonl", "bytes": 1}
            self.answer(
                200, {**file, "LineCount": 1, "purpose": "batch-api", "FileType": "jsonl", "Processed": True}
            )

    do_PUT = do_POST  # noqa: N815  # the standard library's names

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        more = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        self.others.got.append(dict(self.headers))
        for name, value in {**more, **self.others.headers, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the standard library's name
        """Say nothing."""
