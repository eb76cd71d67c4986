"""Anthropic: no parameter is lost, uploads and results are streamed, and lists have ``has_more``."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import msgspec

from flask_llm_batches.batch import NOT_EXECUTED, Batch, Row
from flask_llm_batches.errors import ValidationFailed
from flask_llm_batches.providers.adapters.anthropic_chat import MESSAGES, to_completion, to_params
from flask_llm_batches.providers.adapters.base import Adapter, Page, Submission, Unsuitable
from flask_llm_batches.providers.adapters.lines import error_of, read_reason
from flask_llm_batches.providers.downloads import ACCEPTED, unpacked

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

CHAT = "/v1/chat/completions"

_BATCHES = "/v1/messages/batches"
_HEAD, _TAIL = b'{"requests":[', b"]}"
_CHUNK = 1 << 18
_AS_IT_COMES = {"X-Stainless-Raw-Response": "stream"}  # as with_streaming_response tells the SDK's client

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")

_FAILED = ("errored", "canceled", "expired")
_GIVEN_UP = {"expired": NOT_EXECUTED["expired"], "canceled": NOT_EXECUTED["cancelled"]}


class _Outcome(msgspec.Struct):
    type: str
    message: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    custom_id: str
    result: _Outcome


_decode_line = msgspec.json.Decoder(_Line).decode


class AnthropicAdapter(Adapter):
    """Anthropic, through the SDK's client where any-llm loses something.

    any-llm drops most parameters of a request, adds a ``max_tokens`` of its own, holds everything in memory,
    and reports every batch that has ended as completed.
    """

    # https://platform.claude.com/docs/en/build-with-claude/batch-processing
    max_requests: ClassVar[int | None] = 100_000
    max_bytes: ClassVar[int | None] = 256 * 1024 * 1024
    api_base_has_version: ClassVar[bool | None] = False
    known_args: ClassVar[frozenset[str] | None] = frozenset({"extra_headers"})
    streams_upload: ClassVar[bool] = True
    streams_results: ClassVar[bool] = True

    @property
    def _client(self) -> AsyncAnthropic:
        client: AsyncAnthropic = self.llm.client  # type: ignore[attr-defined]  # AnyLLM does not declare it
        return client

    @classmethod
    def check(cls, submission: Submission) -> None:
        if submission.endpoint not in (CHAT, MESSAGES):
            raise ValidationFailed.of(f"Must be one of: {CHAT}, {MESSAGES}.", "endpoint")
        if submission.completion_window != "24h":
            raise ValidationFailed.of("Must be 24h.", "completion_window")

    @classmethod
    def line(cls, custom_id: str, body: dict[str, msgspec.Raw], endpoint: str) -> dict[str, Any]:
        """Return a request as Anthropic takes it: a chat completion is translated, a message is not."""
        if not _CUSTOM_ID.fullmatch(custom_id):
            raise Unsuitable(
                "Must be 1 to 64 letters, digits, dashes and underscores.", "custom_id", parameter=False
            )
        return {"custom_id": custom_id, "params": body if endpoint == MESSAGES else to_params(body)}

    async def create(self, uploaded: str, submission: Submission) -> Batch:  # noqa: ARG002  # it keeps no metadata
        spool = Path(uploaded)
        length = len(_HEAD) + spool.stat().st_size - 1 + len(_TAIL)  # noqa: ASYNC240  # at once: a local file
        headers = dict(self.batch_args.get("extra_headers", {}))
        headers |= {"Content-Type": "application/json", "Content-Length": str(length)}
        answer = await self._client.post(
            _BATCHES, content=_json_body(spool), options={"headers": headers}, cast_to=object
        )
        return self._batch(answer)

    async def retrieve(self, batch_id: str) -> Batch:
        return self._batch(await self._client.get(_path(batch_id), cast_to=object))

    async def cancel(self, batch_id: str) -> Batch:
        return self._batch(await self._client.post(f"{_path(batch_id)}/cancel", cast_to=object))

    async def list(self, after: str | None, limit: int) -> Page:
        parameters: dict[str, object] = {"limit": limit} | ({"after_id": after} if after else {})
        answer = await self._client.get(_BATCHES, options={"params": parameters}, cast_to=object)
        return self._page(answer, limit)

    async def download(self, batch: Batch) -> AsyncGenerator[bytes, None]:
        # The SDK's own call decodes every line three times, and sends the key to any address that the batch
        # names for its results.
        results: Any = await self._client.get(
            f"{_BATCHES}/{quote(batch.id, safe='')}/results",
            options={"headers": {**ACCEPTED, "Accept": "application/binary", **_AS_IT_COMES}},
            cast_to=object,
        )
        try:
            async for chunk in unpacked(results.http_response):
                yield chunk
        finally:
            await results.close()

    def row(self, line: bytes, batch: Batch) -> Row:
        """Read a line of the results. The answer to a chat completion is translated into one."""
        entry = _decode_line(line)
        if entry.result.type == "succeeded":
            message = entry.result.message
            return Row(entry.custom_id, message if batch.endpoint == MESSAGES else to_completion(message))
        given_up = _GIVEN_UP.get(entry.result.type)
        if given_up is not None:
            return Row(entry.custom_id, error=given_up)
        error = error_of(read_reason(entry.result.error))
        return Row(entry.custom_id, error=self.row_error(error.get("type"), error.get("message")))

    def _batch(self, answer: Any) -> Batch:
        if not isinstance(answer, dict):
            return self._read(answer)  # which raises
        counts = answer.get("request_counts")
        count = {name: _count(counts, name) for name in ("processing", "succeeded", *_FAILED)}
        status = answer.get("processing_status")
        if status == "ended":
            # These are OpenAI's names for a batch that was not executed completely.
            status = "cancelled" if count["canceled"] else "expired" if count["expired"] else "completed"
        elif status == "canceling":
            status = "cancelling"
        failed = sum(count[name] for name in _FAILED)
        return self._read(
            {
                "id": answer.get("id"),
                "status": status,
                "completion_window": "24h",
                "request_counts": {
                    "total": count["processing"] + count["succeeded"] + failed,
                    "completed": count["succeeded"],
                    "failed": failed,
                },
                f"{status}_at": _seconds(answer.get("ended_at")),
                "cancelling_at": _seconds(answer.get("cancel_initiated_at")),
                "created_at": _seconds(answer.get("created_at")),
                "expires_at": _seconds(answer.get("expires_at")),
            }
        )


def _path(batch_id: str) -> str:
    return f"{_BATCHES}/{quote(batch_id, safe='')}"


def _count(counts: object, name: str) -> int:
    count = counts.get(name) if isinstance(counts, dict) else None
    return count if type(count) is int else 0


async def _json_body(spool: Path) -> AsyncGenerator[bytes, None]:
    """Yield the lines of the spool as the list that Anthropic takes. No line has a line feed inside."""
    yield _HEAD
    remaining = spool.stat().st_size - 1  # noqa: ASYNC240  # at once: a local file
    with spool.open("rb") as file:
        while remaining:
            chunk = file.read(min(_CHUNK, remaining))
            remaining -= len(chunk)
            yield chunk.replace(b"\n", b",")
    yield _TAIL


def _seconds(moment: object) -> int | None:
    try:
        return int(datetime.fromisoformat(str(moment)).timestamp())
    except (ValueError, OverflowError):
        return None
