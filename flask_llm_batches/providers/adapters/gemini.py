"""Gemini: refuses parameters that any-llm would drop, and reads results from the batch object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from flask_llm_batches.batch import Batch, Row
from flask_llm_batches.errors import ValidationFailed
from flask_llm_batches.providers.adapters.base import Adapter, Submission, Unsuitable, rename_parameters
from flask_llm_batches.providers.http import guarded_args

if TYPE_CHECKING:
    from google.genai.types import GenerateContentResponse, InlinedResponse

CHAT = "/v1/chat/completions"

# The parameters that any-llm passes on. It drops all others.
_TAKEN = {name: name for name in ("max_tokens", "messages", "model", "stop", "temperature", "top_p")} | {
    "max_completion_tokens": "max_tokens"
}

# https://ai.google.dev/api/generate-content#FinishReason
_FINISH_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"}


# What any-llm can translate for Gemini. It drops everything else, or fails on it, for the whole batch.
class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Url(_Strict):
    url: str


class _FileData(_Strict):
    file_data: str
    filename: str | None = None


class _Sound(_Strict):
    data: str
    format: str


class _Text(_Strict, tag_field="type", tag="text"):
    text: str


class _Image(_Strict, tag_field="type", tag="image_url"):
    image_url: _Url


class _File(_Strict, tag_field="type", tag="file"):
    file: _FileData


class _Audio(_Strict, tag_field="type", tag="input_audio"):
    input_audio: _Sound


class _System(_Strict, tag_field="role", tag="system"):
    content: str | list[_Text]


class _Developer(_Strict, tag_field="role", tag="developer"):
    content: str | list[_Text]


class _User(_Strict, tag_field="role", tag="user"):
    content: str | list[_Text | _Image | _File | _Audio]


class _Assistant(_Strict, tag_field="role", tag="assistant"):
    content: str


_TYPES: dict[str, msgspec.json.Decoder[Any]] = {
    "messages": msgspec.json.Decoder(list[_System | _Developer | _User | _Assistant]),
    "max_tokens": msgspec.json.Decoder(int | None),
    "stop": msgspec.json.Decoder(str | list[str] | None),
    "temperature": msgspec.json.Decoder(float | None),
    "top_p": msgspec.json.Decoder(float | None),
}
_NULL = msgspec.Raw(b"null")


class GeminiAdapter(Adapter):
    """Gemini, through any-llm except for results: any-llm searches Cloud Storage, which never has them."""

    # https://ai.google.dev/gemini-api/docs/batch-api
    max_bytes: ClassVar[int | None] = 20 * 1024 * 1024
    known_args: ClassVar[frozenset[str] | None] = frozenset({"display_name"})

    @classmethod
    def client_args(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        from google.genai.types import HttpOptions

        options = HttpOptions.model_validate(given.get("http_options") or {})
        args = guarded_args(options.async_client_args or {})
        return {**given, "http_options": options.model_copy(update={"async_client_args": args})}

    @property
    def http_client(self) -> None:
        """None: the SDK makes a client for each event loop, with the options from ``client_args``."""

    @classmethod
    def check(cls, submission: Submission) -> None:
        if submission.endpoint != CHAT:
            raise ValidationFailed.of(f"Must be {CHAT}.", "endpoint")
        if submission.completion_window != "24h":
            raise ValidationFailed.of("Must be 24h.", "completion_window")

    @classmethod
    def line(cls, custom_id: str, body: dict[str, msgspec.Raw], endpoint: str) -> dict[str, Any]:
        carriable = rename_parameters(body, _TAKEN, "Not taken by Gemini as part of a batch.")
        if "messages" not in carriable:
            raise Unsuitable("Missing data for required field.", "body", "messages", parameter=False)
        for name, decoder in _TYPES.items():
            try:
                decoder.decode(carriable.get(name, _NULL))
            except msgspec.DecodeError as error:
                raise Unsuitable(f"Not what Gemini takes: {error}.", "body", name, parameter=False) from None
        return super().line(custom_id, carriable, endpoint)

    async def results(self, batch: Batch) -> Sequence[Row]:
        client: Any = self.llm.client  # type: ignore[attr-defined]  # AnyLLM does not declare it
        job = await client.aio.batches.get(name=batch.id)
        answers = (job.dest and job.dest.inlined_responses) or ()
        return [self._answer(answer, batch) for answer in answers]

    def _answer(self, answer: InlinedResponse, batch: Batch) -> Row:
        custom_id = (answer.metadata or {}).get("custom_id", "")
        if answer.response is not None:
            return Row(custom_id, msgspec.Raw(msgspec.json.encode(_completion(answer.response, batch))))
        error = answer.error
        return Row(custom_id, error=self.row_error(error and error.code, error and error.message))


def _completion(response: GenerateContentResponse, batch: Batch) -> dict[str, Any]:
    used = response.usage_metadata
    prompt = (used and used.prompt_token_count) or 0
    thought = (used and used.thoughts_token_count) or 0
    completion = thought + ((used and used.candidates_token_count) or 0)
    return {
        "id": response.response_id or "",
        "object": "chat.completion",
        "created": batch.created_at,
        "model": response.model_version or batch.model or "",
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(texts), "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (texts, reason) in enumerate(_candidates(response))
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": (used and used.cached_content_token_count) or 0},
            "completion_tokens_details": {"reasoning_tokens": thought},
        },
    }


def _candidates(response: GenerateContentResponse) -> list[tuple[list[str], str]]:
    """Return the text of each candidate, without its thoughts, and why it ended."""
    found = []
    for candidate in response.candidates or ():
        parts = (candidate.content and candidate.content.parts) or ()
        reason = candidate.finish_reason.value if candidate.finish_reason else "STOP"
        text = [part.text for part in parts if part.text and not part.thought]
        found.append((text, _FINISH_REASONS.get(reason, "content_filter")))
    return found
