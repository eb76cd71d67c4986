"""What a handler of results receives."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from flask_llm_batches.batch import RowError

_FENCED = re.compile(r"\s*```[a-zA-Z]*\n(.*)\n```\s*", re.DOTALL)


class InvalidOutput(ValueError):
    """The text of a model is not the JSON that was asked for."""


@dataclass(frozen=True, slots=True)
class DeliveredRow:
    """The outcome of a request; exactly one of ``result`` and ``error`` is None.

    Attributes:
        custom_id: The id of the request.
        result: The body of the provider's answer, such as a chat completion.
        error: Why there is none.
        delivery_id: The same whenever this row is delivered. Use it to avoid repeating effects outside of the
            database.
    """

    custom_id: str
    result: dict[str, Any] | None
    error: RowError | None
    delivery_id: str

    @property
    def text(self) -> str | None:
        """What the model wrote.

        It is the first choice of a chat completion, or the text of a message or response.
        None if there is no result, or no text in it.
        """
        result = self.result or {}
        try:
            if "choices" in result:
                choice = result["choices"][0]
                found = choice["message"]["content"] if "message" in choice else choice["text"]
                return found if isinstance(found, str) else None
            blocks = result.get("content")  # Anthropic's message
            if blocks is None:  # OpenAI's response
                blocks = [block for item in result["output"] for block in item.get("content") or ()]
            return "".join(block["text"] for block in blocks if "text" in block) or None
        except (KeyError, IndexError, TypeError, AttributeError):
            return None

    @property
    def usage(self) -> dict[str, Any] | None:
        """The tokens, as the provider counts them; None if it does not say."""
        used = (self.result or {}).get("usage")
        return used if isinstance(used, dict) else None

    def json(self, schema: Any = None) -> Any:
        """Parse the text as JSON, and check it.

        Args:
            schema: A dataclass, ``TypedDict``, msgspec ``Struct`` or any type of theirs, a pydantic model, or
                a marshmallow schema. Without it, any JSON is returned.

        Raises:
            InvalidOutput: There is no text, or it is not JSON of that shape.
        """
        text = self.text
        if text is None:
            reason = f": {self.error.message}" if self.error is not None else ""
            raise InvalidOutput(f"Request {self.custom_id!r} has no text{reason}")
        fenced = _FENCED.fullmatch(text)
        try:
            return _parse(fenced[1] if fenced else text, schema)
        except (ValueError, RecursionError) as error:
            raise InvalidOutput(f"The text of request {self.custom_id!r} does not fit: {error}") from None


def _parse(text: str, schema: Any) -> Any:
    if hasattr(schema, "model_validate_json"):  # pydantic
        return schema.model_validate_json(text)
    if hasattr(schema, "loads"):  # marshmallow
        return (schema() if isinstance(schema, type) else schema).loads(text)
    return msgspec.json.decode(text, type=Any if schema is None else schema)
