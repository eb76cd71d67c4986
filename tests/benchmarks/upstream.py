"""A provider that costs next to nothing: it speaks OpenAI's routes, keeps nothing, and is ready beforehand.

An id contains all data of its batch: ``batch_50000_completed_7`` has 50,000 requests, and is finished at the
first
look. Its output file is so many lines of one that was made at the start. A batch whose metadata has
``{"state": "in_progress"}`` runs for ever.
"""

from __future__ import annotations

import itertools
import json
import socketserver
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask_llm_batches.testing import Simulator

ROW_BYTES = 840
MAX_ROWS = 200_000

_PIECE = 1 << 20
_NAME = b'"custom_id"'
_TEXT = 'The caf\u00e9 was "fine", she wrote.\nWould she come again? Perhaps, if it were quieter. '


def output_file(rows: int) -> bytes:
    """Make an output file, every line of the same size."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": f"{_TEXT * 2}<pad>",
        "refusal": None,
        "annotations": [],
    }
    body = {
        "id": "chatcmpl-<id>",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 83,
            "completion_tokens": 42,
            "total_tokens": 125,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        },
        "system_fingerprint": "fp_0123456789",
    }
    response = {"status_code": 200, "request_id": "<id>", "body": body}
    line = {"id": "batch_req_<id>", "custom_id": "r<number>", "response": response, "error": None}
    text = json.dumps(line)

    def lines() -> Iterator[bytes]:
        for number in range(rows):
            numbered = text.replace("<id>", f"{number:024}").replace("<number>", str(number))
            yield numbered.replace("<pad>", "." * (ROW_BYTES + len("<pad>") - 1 - len(numbered))).encode()

    return b"".join(line + b"\n" for line in lines())


class _Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True
    output = memoryview(b"")
    numbers = itertools.count()

    def handle(self) -> None:
        while line := self.rfile.readline():
            method, target, _ = line.decode().split()
            headers: dict[str, str] = {}
            while (header := self.rfile.readline()) != b"\r\n":
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            self._answer(method, target.removeprefix("/v1"), int(headers.get("content-length", 0)))

    def _answer(self, method: str, path: str, length: int) -> None:
        match [method, *path.partition("?")[0].strip("/").split("/")]:
            case ["POST", "files"]:
                rows = self._count(length)
                self._say(
                    {
                        "id": f"file-{rows}",
                        "object": "file",
                        "bytes": length,
                        "created_at": 1,
                        "filename": "batch.jsonl",
                        "purpose": "batch",
                        "status": "processed",
                    }
                )
            case ["POST", "batches"]:
                asked = json.loads(self.rfile.read(length))
                rows = asked["input_file_id"].removeprefix("file-")
                metadata = asked.get("metadata") or {}
                state = metadata.get("state", "completed")
                self._say(_batch(f"batch_{rows}_{state}_{next(self.numbers)}", metadata))
            case ["GET", "batches", batch_id]:
                self._say(_batch(batch_id, None))
            case ["GET", "files", file_id, "content"]:
                self._send("application/octet-stream", self.output[: int(file_id[5:]) * ROW_BYTES])
            case _:
                raise ValueError(f"{method} {path}")

    def _count(self, length: int) -> int:
        rows, tail = 0, b""
        while length:
            piece = tail + self.rfile.read1(min(_PIECE, length))
            length -= len(piece) - len(tail)
            rows += piece.count(_NAME)
            tail = piece[1 - len(_NAME) :]
        return rows

    def _say(self, value: dict[str, Any]) -> None:
        self._send("application/json", memoryview(json.dumps(value).encode()))

    def _send(self, kind: str, body: memoryview) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        first = head + body[:_PIECE]
        self.connection.sendall(first)
        self.connection.sendall(body[_PIECE:])


def _batch(batch_id: str, metadata: dict[str, str] | None) -> dict[str, Any]:
    _, rows, state = batch_id.split("_", 2)
    state = state.rpartition("_")[0]
    done = state == "completed"
    return {
        "id": batch_id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "errors": None,
        "input_file_id": f"file-{rows}",
        "completion_window": "24h",
        "status": state,
        "output_file_id": f"file-{rows}" if done else None,
        "error_file_id": None,
        "created_at": 1_760_000_000,
        "in_progress_at": 1_760_000_001,
        "expires_at": 1_760_086_400,
        "completed_at": 1_760_000_002 if done else None,
        "request_counts": {"total": int(rows), "completed": int(rows) if done else 0, "failed": 0},
        "metadata": metadata,
    }


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64


class _Elsewhere(Simulator):
    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    @property
    def providers(self) -> dict[str, dict[str, str]]:
        return {"openai": {"api_key": self.api_key, "api_base": self._base_url}}


@contextmanager
def upstream() -> Iterator[Simulator]:
    """Run it in a process of its own; the instance here only knows where it is."""
    command = [sys.executable, "-m", "tests.benchmarks.upstream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield _Elsewhere(process.stdout.readline().strip())
        finally:
            process.terminate()


def _main() -> None:
    _Handler.output = memoryview(output_file(MAX_ROWS))
    with _Server(("127.0.0.1", 0), _Handler) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    _main()
