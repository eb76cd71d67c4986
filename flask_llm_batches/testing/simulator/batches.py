"""A simulated batch, its clock, and what its requests are answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

Respond = Callable[[Mapping[str, Any]], dict[str, Any] | tuple[int, dict[str, Any]]]
"""Gets a line of the input file; gives the body of the response, or a status and a body."""

FINAL = ("completed", "failed", "expired", "cancelled")


@dataclass(slots=True, kw_only=True)
class SimulatedBatch:
    """A batch at the simulated provider.

    Attributes:
        id: Its id.
        requests: The lines of its input file, parsed.
        status: OpenAI's.
        metadata: What came with it.
        errors: What was wrong with its input file; it is ``failed`` then, from the first look at it.
    """

    id: str
    endpoint: str
    completion_window: str
    input_file_id: str
    requests: list[dict[str, Any]]
    metadata: dict[str, str] | None
    errors: list[dict[str, Any]]
    respond: Respond
    seconds: float | None
    status: str = "validating"
    times: dict[str, int] = field(default_factory=dict)
    completed: int = 0
    failed: int = 0
    output: list[bytes] = field(default_factory=list, repr=False)
    error_output: list[bytes] = field(default_factory=list, repr=False)
    running_since: float | None = None

    def __post_init__(self) -> None:
        self.times["created_at"] = now = int(time.time())
        self.times["expires_at"] = now + 24 * 3600

    def look(self) -> None:
        """Let happen what has happened by now: validation ends with the first look, the rest takes time."""
        if self.running_since is None:
            self.running_since = time.monotonic()
        if self.status == "validating":
            self._become("failed" if self.errors else "in_progress")
        if self.seconds is not None and self.status not in FINAL:
            passed = time.monotonic() - self.running_since
            share = min(passed / self.seconds, 1.0) if self.seconds else 1.0
            self.advance(int(share * len(self.requests)) - self.completed - self.failed)
            if share == 1.0 or self.status == "cancelling":
                self.finish()

    def advance(self, requests: int = 1) -> None:
        """Have so many more requests answered: the last ones first, as output is in no order."""
        for _ in range(min(requests, len(self.requests) - self.completed - self.failed)):
            line = self.requests[-1 - self.completed - self.failed]
            answer = self.respond(line)
            status, body = answer if isinstance(answer, tuple) else (200, answer)
            response = {"status_code": status, "request_id": f"req_{self.completed}", "body": body}
            encoded = _row(line["custom_id"], response, None)
            if status == 200:
                self.completed += 1
                self.output.append(encoded)
            else:
                self.failed += 1
                self.error_output.append(encoded)

    def finish(self) -> None:
        """End the batch: ``completed``, or ``cancelled`` with what was answered before."""
        if self.status == "cancelling":
            self._give_up("batch_cancelled", "This request was cancelled before it was executed.")
            self._become("cancelled")
        else:
            self.advance(len(self.requests))
            self.times.setdefault("finalizing_at", int(time.time()))
            self._become("completed")

    def expire(self, *, after: int = 0) -> None:
        """Run out of time when so many requests were answered."""
        self.advance(after - self.completed - self.failed)
        self._give_up(
            "batch_expired", "This request could not be executed before the completion window expired."
        )
        self._become("expired")

    def cancel(self) -> None:
        """Begin to cancel; ``finish`` ends it."""
        self._become("cancelling")

    def fail(self, message: str, *, code: str = "invalid_request", line: int | None = None) -> None:
        """Refuse the input file, as if validation had found something."""
        self.errors.append({"code": code, "message": message, "param": None, "line": line})
        self._become("failed")

    def _become(self, status: str) -> None:
        self.status = status
        self.times[f"{status}_at"] = int(time.time())

    def _give_up(self, code: str, message: str) -> None:
        done = self.completed + self.failed
        for line in self.requests[: len(self.requests) - done]:
            self.failed += 1
            self.error_output.append(_row(line["custom_id"], None, {"code": code, "message": message}))


def _row(custom_id: str, response: object, error: object) -> bytes:
    row = {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(row) + b"\n"


def echo(line: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a request with its own last message, and a token for every four characters."""
    body = line["body"]
    said = str(body.get("input") or (body.get("messages") or [{}])[-1].get("content") or "")
    tokens = len(said) // 4 + 1
    if line["url"] == "/v1/embeddings":
        return {
            "object": "list",
            "model": body["model"],
            "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 1.0]}],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    message = {"role": "assistant", "content": said, "refusal": None}
    return {
        "id": f"chatcmpl-{line['custom_id']}",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": tokens,
            "completion_tokens": tokens,
            "total_tokens": 2 * tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        },
    }
