"""Translates chat completions for Anthropic, and Anthropic's messages into chat completions."""

from __future__ import annotations

from typing import Any

import msgspec

from flask_llm_batches.providers.adapters.base import Unsuitable, rename_parameters
from flask_llm_batches.providers.adapters.pictures import PICTURE, translate_pictures
from flask_llm_batches.untrusted import TooMany, read_array, read_object, small

# The parameters that mean the same in a chat completion and at Anthropic, those that only Anthropic has, and
# those that it has under another name: https://platform.claude.com/docs/en/api/messages/create
# Others are refused.
_SAME = ("max_tokens", "messages", "model", "temperature", "top_p")
_OWN = ("container", "output_config", "stop_sequences", "system", "thinking", "top_k")
MESSAGES = "/v1/messages"
"""Anthropic's own endpoint."""

# Anthropic needs a limit, and OpenAI does not. Every model of Anthropic's can write that much:
# https://platform.claude.com/docs/en/about-claude/models/overview
_MAX_TOKENS = 4096

_TAKEN = {name: name for name in (*_SAME, *_OWN)} | {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
}
_REFUSED = f"Not part of a chat completion at Anthropic; for Anthropic's own body, use endpoint {MESSAGES!r}."

# https://platform.claude.com/docs/en/api/handling-stop-reasons
_FINISH_REASONS = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "tool_use": "tool_calls",
}


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
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_block = msgspec.json.Decoder(_Block).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode


def to_params(body: dict[str, msgspec.Raw]) -> dict[str, Any]:
    """Return a chat completion as Anthropic takes it.

    Raises:
        Unsuitable: Something of it would be lost.
    """
    params = rename_parameters(body, _TAKEN, _REFUSED)
    params.setdefault("max_tokens", _MAX_TOKENS)
    if "stop_sequences" in params and bytes(memoryview(params["stop_sequences"])[:1]) == b'"':
        params["stop_sequences"] = [params["stop_sequences"]]
    try:
        _translate_messages(params)
    except TooMany as error:
        raise Unsuitable(str(error), "body", "messages", parameter=False) from None
    return params


def _translate_messages(params: dict[str, Any]) -> None:
    """Move the system messages, which come first, to where Anthropic takes them, and translate pictures.

    Raises:
        TooMany: There are very many messages, or parts of one.
        Unsuitable: Anthropic takes no such system messages, or no such pictures.
    """
    try:
        messages = read_array(params.get("messages", _NO_MESSAGES), _MAX_ITEMS)
        turns = [_decode_turn(message) for message in messages]
    except msgspec.DecodeError:
        return  # Anthropic says what is wrong with them
    leading = 0
    for index, turn in enumerate(turns):
        if turn.role not in _SYSTEM:
            content = bytes(turn.content)
            if content.startswith(b"[") and PICTURE in content:
                translated = read_object(messages[index])
                translated["content"] = _encode(translate_pictures(turn.content, index))
                messages[index] = _encode(translated)
            continue
        at = ("body", "messages", index)
        if index != leading:
            raise Unsuitable("Anthropic takes system messages only before all others.", *at)
        for name in read_object(messages[index]).keys() - {"role", "content"}:
            raise Unsuitable("Not part of a system message at Anthropic.", *at, name)
        leading += 1
    params["messages"] = messages[leading:]
    if not leading:
        return
    if "system" in params:
        raise Unsuitable("Given twice: as a message, too.", "body", "system")
    contents = [turn.content for turn in turns[:leading]]
    params["system"] = contents[0] if leading == 1 else [block for raw in contents for block in _blocks(raw)]


def _encode(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _blocks(content: msgspec.Raw) -> list[Any]:
    try:
        return list(read_array(content, _MAX_ITEMS))
    except msgspec.ValidationError:  # text
        return [{"type": "text", "text": content}]


def to_completion(raw: msgspec.Raw) -> msgspec.Raw:
    """Return a message as a chat completion. Blocks that OpenAI does not have are in ``extra_content``."""
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
    answer = {"role": "assistant", "content": "".join(text), "refusal": None, **more}
    completion = {
        "id": message.id,
        "object": "chat.completion",
        "created": 0,
        "model": message.model,
        "choices": [{"index": 0, "message": answer, "logprobs": None, "finish_reason": finish_reason}],
        "usage": _usage(_decode_usage(small(message.usage))),
    }
    return msgspec.Raw(msgspec.json.encode(completion))


def _usage(used: _Usage) -> dict[str, Any]:
    # Anthropic's input does not include tokens that were read from or written to its cache; OpenAI's does.
    read, written = used.cache_read_input_tokens or 0, used.cache_creation_input_tokens or 0
    prompt = used.input_tokens + read + written
    # A field of Anthropic's, kept for the price: tokens that its cache keeps for an hour cost more.
    more = {"cache_creation": used.cache_creation} if isinstance(used.cache_creation, dict) else {}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": used.output_tokens,
        "total_tokens": prompt + used.output_tokens,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        **more,
    }
