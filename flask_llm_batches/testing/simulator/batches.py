"""A simulated batch, its clock, and the answers to its requests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Answer = dict[str, Any] | tuple[int, dict[str, Any]]
"""The body of a response, or a status and a body."""

Respond = Callable[[Mapping[str, Any]], Answer]
"""Called with a line of the batch: ``custom_id``, ``method``, ``url``, ``body``."""

Outcome = Literal["succeeded", "errored", "expired", "cancelled"]

FINAL = ("completed", "failed", "expired", "cancelled")


@dataclass(slots=True, kw_only=True)
class SimulatedBatch:
    """A batch at the simulated provider.

    Attributes:
        protocol: The provider: ``openai``, ``anthropic`` or ``mistral``.
        id: Its id.
        asked: What it was created with.
        requests: The lines of its input file, parsed: ``custom_id``, ``method``, ``url``, ``body``.
        status: OpenAI's name of the status, for all protocols.
        metadata: The metadata of the create call.
        errors: The errors of its input file. If there are any, it is ``failed`` from the first retrieval.
        write_row: Returns a line of its output.
        respond: Answers a request; see ``Simulator``.
        seconds: How long it runs; None until ``finish`` or another method ends it.
        tokens: How many count against ``Simulator.token_limit``: a fourth of the bytes of its bodies.
    """

    protocol: str
    id: str
    asked: dict[str, Any]
    requests: list[dict[str, Any]]
    metadata: dict[str, str] | None
    errors: list[dict[str, Any]]
    write_row: Callable[[str, Outcome, int, object], bytes]
    respond: Respond
    seconds: float | None
    status: str = "validating"
    times: dict[str, int] = field(default_factory=dict)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    output: list[bytes] = field(default_factory=list, repr=False)
    error_output: list[bytes] = field(default_factory=list, repr=False)
    running_since: float | None = None
    tokens: int = 0

    def __post_init__(self) -> None:
        self.tokens = sum(len(msgspec.json.encode(line["body"])) for line in self.requests) // 4
        self.times["created_at"] = now = int(time.time())
        self.times["expires_at"] = now + 24 * 3600

    @property
    def completed(self) -> int:
        """The number of requests that have succeeded."""
        return self.outcomes["succeeded"]

    @property
    def failed(self) -> int:
        """The number of requests that have ended in another way."""
        return self.outcomes.total() - self.completed

    def look(self) -> None:
        """Update the batch: validation ends with the first look, the rest takes time."""
        if self.running_since is None:
            self.running_since = time.monotonic()
        if self.status == "validating":
            self._become("failed" if self.errors else "in_progress")
        if self.seconds is not None and self.status not in FINAL:
            passed = time.monotonic() - self.running_since
            share = min(passed / self.seconds, 1.0) if self.seconds else 1.0
            self.advance(int(share * len(self.requests)) - self.outcomes.total())
            if share == 1.0 or self.status == "cancelling":
                self.finish()

    def advance(self, requests: int = 1) -> None:
        """Answer so many more requests, the last ones first: output has no order."""
        if self._is_wrong():
            return
        for _ in range(min(requests, self._left)):
            line = self.requests[self._left - 1]
            answer = self.respond(line)
            status, body = answer if isinstance(answer, tuple) else (200, answer)
            self._settle("succeeded" if status == 200 else "errored", status, body)

    def finish(self) -> None:
        """End the batch: ``completed``, or ``cancelled`` with the requests that were answered before.

        A batch whose input file is wrong ends as ``failed``, as it does at the provider.
        """
        if self._is_wrong():
            return
        if self.status == "cancelling":
            self._give_up("cancelled")
            self._become("cancelled")
        else:
            self.advance(len(self.requests))
            self.times.setdefault("finalizing_at", int(time.time()))
            self._become("completed")

    def expire(self, *, after: int = 0) -> None:
        """End the batch as ``expired``, after so many requests were answered."""
        if self._is_wrong():
            return
        self.advance(after - self.outcomes.total())
        self._give_up("expired")
        self._become("expired")

    def cancel(self) -> None:
        """Set the status to ``cancelling``; ``finish`` ends the batch."""
        self._become("cancelling")

    def fail(self, message: str, *, code: str = "invalid_request", line: int | None = None) -> None:
        """End the batch as ``failed``, as if the validation of the input file had failed.

        Anthropic has no failed batches: its remaining requests end as ``errored`` with the message.
        """
        if self.protocol == "anthropic":
            while self._left:
                self._settle("errored", 400, {"error": {"type": f"{code}_error", "message": message}})
        self.errors.append({"code": code, "message": message, "param": None, "line": line})
        self._become("failed")

    @property
    def model(self) -> object:
        """The model of its first request."""
        return self.requests[0]["body"].get("model") if self.requests else None

    @property
    def _left(self) -> int:
        return len(self.requests) - self.outcomes.total()

    def _is_wrong(self) -> bool:
        """Return whether its input file is wrong. Then it has failed."""
        if self.errors and self.status == "validating":
            self._become("failed")
        return bool(self.errors)

    def _become(self, status: str) -> None:
        self.status = status
        self.times[f"{status}_at"] = int(time.time())

    def _give_up(self, outcome: Outcome) -> None:
        while self._left:
            self._settle(outcome, 0, None)

    def _settle(self, outcome: Outcome, status: int, body: object) -> None:
        line = self.requests[self._left - 1]
        row = self.write_row(line["custom_id"], outcome, status, body)
        (self.output if outcome == "succeeded" else self.error_output).append(row)
        self.outcomes[outcome] += 1


def echo(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a response with the request's last message, and a token for every four characters."""
    body = line["body"]
    said = _text(body.get("input") or (body.get("messages") or [{}])[-1].get("content") or "")
    tokens = len(said) // 4 + 1
    if line["url"] == "/v1/messages":
        return {
            "id": f"msg_{line['custom_id']}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [{"type": "text", "text": said}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": tokens,
                "output_tokens": tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "service_tier": "batch",
            },
        }
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


def _text(content: Any) -> str:
    """Return the text of a message."""
    if isinstance(content, list):
        return "".join(item.get("text", "") if isinstance(item, dict) else str(item) for item in content)
    return str(content)
