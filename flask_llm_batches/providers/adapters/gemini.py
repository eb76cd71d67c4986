"""Gemini: no parameter is lost, and results are those that stand in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from flask_llm_batches.batch import Batch, Row
from flask_llm_batches.errors import ValidationFailed
from flask_llm_batches.providers.adapters.base import Adapter, Submission, carried

if TYPE_CHECKING:
    from google.genai.types import GenerateContentResponse, InlinedResponse

CHAT = "/v1/chat/completions"

# What any-llm carries; it drops the others.
_TAKEN = {name: name for name in ("max_tokens", "messages", "model", "stop", "temperature", "top_p")} | {
    "max_completion_tokens": "max_tokens"
}

# https://ai.google.dev/api/generate-content#FinishReason
_FINISH_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"}


class GeminiAdapter(Adapter):
    """Gemini, through any-llm but for results: it looks for those in Cloud Storage, where they never are."""

    # https://ai.google.dev/gemini-api/docs/batch-api
    max_bytes: ClassVar[int | None] = 20 * 1024 * 1024
    known_args: ClassVar[frozenset[str] | None] = frozenset({"display_name"})

    @classmethod
    def check(cls, submission: Submission) -> None:
        if submission.endpoint != CHAT:
            raise ValidationFailed({"endpoint": [f"Must be {CHAT}."]})
        if submission.completion_window != "24h":
            raise ValidationFailed({"completion_window": ["Must be 24h."]})

    @classmethod
    def line(cls, custom_id: str, body: dict[str, msgspec.Raw], endpoint: str) -> dict[str, Any]:
        carriable = carried(body, _TAKEN, "Not taken by Gemini as part of a batch.")
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
                "message": {"role": "assistant", "content": "".join(said), "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (said, reason) in enumerate(_said(response))
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": (used and used.cached_content_token_count) or 0},
            "completion_tokens_details": {"reasoning_tokens": thought},
        },
    }


def _said(response: GenerateContentResponse) -> list[tuple[list[str], str]]:
    """Give the text of each candidate and why it ends; of thoughts, nothing, as nothing asked for them."""
    found = []
    for candidate in response.candidates or ():
        parts = (candidate.content and candidate.content.parts) or ()
        reason = candidate.finish_reason.value if candidate.finish_reason else "STOP"
        text = [part.text for part in parts if part.text and not part.thought]
        found.append((text, _FINISH_REASONS.get(reason, "content_filter")))
    return found
