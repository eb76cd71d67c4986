"""The pictures of a chat completion, as Anthropic takes them."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import msgspec

from flask_llm_batches.providers.adapters.base import Unsuitable
from flask_llm_batches.untrusted import read_array

PICTURE = b'"image_url"'
"""What is in the bytes of every message with a picture."""

_MAX_PARTS = 100_000
_BASE64 = re.compile("data:([a-z]+/[a-z0-9.+-]+);base64,(.*)", re.DOTALL)


class _Address(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    detail: str = "auto"


class _Picture(msgspec.Struct, forbid_unknown_fields=True, tag="image_url"):
    image_url: _Address


class _Kind(msgspec.Struct, gc=False):
    type: str


_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_picture = msgspec.json.Decoder(_Picture).decode


def translate_pictures(content: msgspec.Raw, message: int) -> list[Any]:
    """Return the parts of a message with its pictures in Anthropic's form.

    https://platform.claude.com/docs/en/build-with-claude/vision

    Args:
        content: The parts.
        message: The number of the message, for errors.

    Raises:
        TooMany: There are very many parts.
        Unsuitable: A picture has what Anthropic does not take.
    """
    parts: list[Any] = list(read_array(content, _MAX_PARTS))
    for number, part in enumerate(parts):
        with suppress(msgspec.ValidationError):  # Anthropic says what is wrong with it
            if _decode_kind(part).type == "image_url":
                parts[number] = _translate(part, ("body", "messages", message, "content", number))
    return parts


def _translate(part: msgspec.Raw, path: tuple[str | int, ...]) -> dict[str, Any]:
    try:
        address = _decode_picture(part).image_url
    except msgspec.ValidationError:
        raise Unsuitable("Not a picture that Anthropic takes: it has url, and nothing else.", *path) from None
    if address.detail != "auto":
        raise Unsuitable("Anthropic has no detail of pictures: leave it out.", *path, "image_url", "detail")
    embedded = _BASE64.fullmatch(address.url)
    if embedded is None:
        return {"type": "image", "source": {"type": "url", "url": address.url}}
    kind, data = embedded.groups()
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}
