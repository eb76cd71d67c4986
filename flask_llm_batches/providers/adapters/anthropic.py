"""Anthropic: every parameter or an error, an upload and results that stream, lists with ``has_more``."""

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
from flask_llm_batches.providers.adapters.base import (
    Adapter,
    Page,
    Submission,
    Unsuitable,
    carried,
    read_reason,
    said,
)
from flask_llm_batches.providers.downloads import ACCEPTED, unpacked
from flask_llm_batches.untrusted import TooMany, read_array, read_object, small

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"

_BATCHES = "/v1/messages/batches"
_HEAD, _TAIL = b'{"requests":[', b"]}"
_CHUNK = 1 << 18
_AS_IT_COMES = {"X-Stainless-Raw-Response": "stream"}  # what with_streaming_response says to the SDK's client

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")

# By which a chat completion and https://platform.claude.com/docs/en/api/messages/create mean the same, what
# only the latter has, and what it has under another name. Others are refused.
_SAME = ("max_tokens", "messages", "model", "temperature", "top_p")
_OWN = ("container", "output_config", "stop_sequences", "system", "thinking", "top_k")
_TAKEN = {name: name for name in (*_SAME, *_OWN)} | {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
}
_REFUSED = f"Not part of a chat completion at Anthropic; a body of its own goes to the endpoint {MESSAGES!r}."

# https://platform.claude.com/docs/en/api/handling-stop-reasons
_FINISH_REASONS = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "tool_use": "tool_calls",
}

_FAILED = ("errored", "canceled", "expired")
_GIVEN_UP = {"expired": NOT_EXECUTED["expired"], "canceled": NOT_EXECUTED["cancelled"]}


class _Outcome(msgspec.Struct):
    type: str
    message: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    custom_id: str
    result: _Outcome


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: Any = None


class _Message(msgspec.Struct):
    id: str
    model: str
    content: msgspec.Raw
    usage: msgspec.Raw
    stop_reason: str | None = None


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Turn(msgspec.Struct, gc=False):
    role: msgspec.Raw = msgspec.Raw(b"null")
    content: msgspec.Raw = msgspec.Raw(b"null")


_SYSTEM = (msgspec.Raw(b'"system"'), msgspec.Raw(b'"developer"'))
_NULL = msgspec.Raw(b"null")
_NO_MESSAGES = msgspec.Raw(b"[]")
_MAX_ITEMS = 100_000  # of messages, as Anthropic's own limit is, and of the blocks of one
_decode_turn = msgspec.json.Decoder(_Turn).decode
_decode_line = msgspec.json.Decoder(_Line).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_block = msgspec.json.Decoder(_Block).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode


class AnthropicAdapter(Adapter):
    """Anthropic, through the SDK's client where any-llm loses something.

    It would drop most parameters of a request, put in a ``max_tokens`` of its own, hold everything in memory,
    and say of every batch that has ended that it is completed.
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
        """Give a request as Anthropic takes it: a chat completion's in its words, one of its own as it is."""
        if not _CUSTOM_ID.fullmatch(custom_id):
            raise Unsuitable(
                "Must be 1 to 64 letters, digits, dashes and underscores.", "custom_id", parameter=False
            )
        return {"custom_id": custom_id, "params": body if endpoint == MESSAGES else _params(body)}

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
        # The SDK's own call decodes every line three times over, and goes wherever the batch says that its
        # results are, with the key.
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
        """Read a line of the results; the answer to a chat completion is one."""
        entry = _decode_line(line)
        if entry.result.type == "succeeded":
            message = entry.result.message
            return Row(entry.custom_id, message if batch.endpoint == MESSAGES else _completion(message))
        given_up = _GIVEN_UP.get(entry.result.type)
        if given_up is not None:
            return Row(entry.custom_id, error=given_up)
        error = said(read_reason(entry.result.error))
        return Row(entry.custom_id, error=self.row_error(error.get("type"), error.get("message")))

    def _batch(self, answer: Any) -> Batch:
        if not isinstance(answer, dict):
            return self._read(answer)  # which says that it is none
        counts = answer.get("request_counts")
        count = {name: _count(counts, name) for name in ("processing", "succeeded", *_FAILED)}
        status = answer.get("processing_status")
        if status == "ended":
            # As OpenAI says it of a batch of which not all was executed.
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
    """Give the spool's lines as the list that Anthropic takes; no line has a line feed inside."""
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


def _params(body: dict[str, msgspec.Raw]) -> dict[str, Any]:
    params = carried(body, _TAKEN, _REFUSED)
    if "max_tokens" not in params:
        needed = "Anthropic needs one: give max_tokens or max_completion_tokens."
        raise Unsuitable(needed, "body", "max_tokens", parameter=False)
    if "stop_sequences" in params and bytes(memoryview(params["stop_sequences"])[:1]) == b'"':
        params["stop_sequences"] = [params["stop_sequences"]]
    try:
        _move_system(params)
    except TooMany as error:
        raise Unsuitable(str(error), "body", "messages", parameter=False) from None
    return params


def _move_system(params: dict[str, Any]) -> None:
    """Move the system messages, which come first, to where Anthropic takes them.

    Raises:
        TooMany: There are very many messages, or parts of one.
        Unsuitable: Anthropic takes no such system messages.
    """
    try:
        messages = read_array(params.get("messages", _NO_MESSAGES), _MAX_ITEMS)
        turns = [_decode_turn(message) for message in messages]
    except msgspec.DecodeError:
        return  # Anthropic says what is wrong with them
    leading = 0
    for index, turn in enumerate(turns):
        if turn.role not in _SYSTEM:
            continue
        at = ("body", "messages", index)
        if index != leading:
            raise Unsuitable("Anthropic takes system messages only before all others.", *at)
        for name in read_object(messages[index]).keys() - {"role", "content"}:
            raise Unsuitable("Not part of a system message at Anthropic.", *at, name)
        leading += 1
    if not leading:
        return
    if "system" in params:
        raise Unsuitable("Given twice: as a message, too.", "body", "system")
    contents = [turn.content for turn in turns[:leading]]
    params["system"] = contents[0] if leading == 1 else [block for raw in contents for block in _blocks(raw)]
    params["messages"] = messages[leading:]


def _blocks(content: msgspec.Raw) -> list[Any]:
    try:
        return list(read_array(content, _MAX_ITEMS))
    except msgspec.ValidationError:  # text
        return [{"type": "text", "text": content}]


def _completion(raw: msgspec.Raw) -> msgspec.Raw:
    """Say a message as a chat completion; blocks that those do not know stand in ``extra_content``."""
    message = _decode_message(raw)
    text: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    more: dict[str, Any] = {}
    for raw_block in read_array(message.content, _MAX_ITEMS):
        block = _decode_block(raw_block)
        if block.type == "text":
            text.append(block.text)
        elif block.type == "tool_use":
            function = {"name": block.name, "arguments": str(memoryview(block.input), "utf-8")}
            calls.append({"id": block.id, "type": "function", "function": function})
        else:
            thoughts.append(block.thinking)
            more["extra_content"] = {"anthropic": {"content": message.content}}
    if calls:
        more["tool_calls"] = calls
    if any(thoughts):
        more["reasoning"] = {"content": "".join(thoughts)}
    finish_reason = _FINISH_REASONS.get(message.stop_reason or "", "stop")
    said = {"role": "assistant", "content": "".join(text), "refusal": None, **more}
    completion = {
        "id": message.id,
        "object": "chat.completion",
        "created": 0,
        "model": message.model,
        "choices": [{"index": 0, "message": said, "logprobs": None, "finish_reason": finish_reason}],
        "usage": _usage(_decode_usage(small(message.usage))),
    }
    return msgspec.Raw(msgspec.json.encode(completion))


def _usage(used: _Usage) -> dict[str, Any]:
    # Anthropic counts what it read from and wrote to its cache beside the input, OpenAI as part of it.
    read, written = used.cache_read_input_tokens or 0, used.cache_creation_input_tokens or 0
    prompt = used.input_tokens + read + written
    # Anthropic's own, for what costs more: tokens that its cache keeps for an hour.
    more = {"cache_creation": used.cache_creation} if isinstance(used.cache_creation, dict) else {}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": used.output_tokens,
        "total_tokens": prompt + used.output_tokens,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        **more,
    }
