"""What a create asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from flask_llm_batches.batch import Batch
from flask_llm_batches.core.spool import Model
from flask_llm_batches.errors import Problem, ValidationFailed
from flask_llm_batches.fields import is_whole
from flask_llm_batches.log import request_id
from flask_llm_batches.providers.adapters import Submission

DEFAULT_ENDPOINT = "/v1/chat/completions"

MAX_METADATA = 16
"""The most pairs of metadata, at OpenAI. We add one, so the provider gets only 15 of the caller's 16."""

MAX_METADATA_KEY, MAX_METADATA_VALUE = 64, 512
"""The most characters of a key and of a value, at OpenAI."""


class Checked(NamedTuple):
    """The result of a dry run.

    Attributes:
        provider: The provider that would run the batch.
        requests: The number of requests.
        size: Their size in bytes, as the provider would receive them.
        parts: How many batches the provider would get.
        tokens: About how many tokens their prompts have: a fourth of their bytes.
        cost: What so many tokens of prompts cost at batch rates, in US dollars; None if that is not known.
        standard_cost: What they cost at standard rates.
        warnings: What would differ from the request, needs a worker that is not alive, or is above a limit of
            the owner.
    """

    provider: str
    requests: int
    size: int
    parts: int
    tokens: int
    cost: Decimal | None
    standard_cost: Decimal | None
    warnings: Sequence[str]


class Created(NamedTuple):
    """The result of a create.

    Attributes:
        batch: The batch, as callers see it.
        waits: Whether it has just been recorded, and waits to be submitted.
    """

    batch: Batch
    waits: bool


class Asked(NamedTuple):
    """What a create asks for, besides its requests.

    Attributes:
        provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
        model: Its model.
        submission: What is submitted besides the requests.
        on_results: The name of the handler that takes the rows.
        webhook: The name of the webhook that is sent when the batch has ended.
        output_seconds: Seconds for which the files of its results last; None for as long as the results.
        retries: How often requests that failed for a temporary reason are submitted again.
    """

    provider: str
    model: Model
    submission: Submission
    on_results: str | None = None
    webhook: str | None = None
    output_seconds: int | None = None
    retries: int = 0

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the first snapshot."""
        asked_for = self.submission
        return {
            "model": asked_for.model or None,
            "endpoint": asked_for.endpoint,
            "completion_window": asked_for.completion_window,
            "metadata": asked_for.metadata,
        }

    @property
    def then(self) -> Sequence[str | None]:
        """What happens to the results: part of what an ``Idempotency-Key`` stands for."""
        return self.on_results, self.webhook, *([str(self.retries)] if self.retries else ())

    @property
    def options(self) -> dict[str, Any]:
        """The columns of ``BatchRow`` that are filled from it."""
        return {
            "on_results": self.on_results,
            "webhook": self.webhook,
            "output_seconds": self.output_seconds,
            "retries": self.retries or None,
            "request_id": request_id(),
        }


def check_metadata(metadata: Mapping[Any, Any]) -> None:
    """Check the metadata of a create.

    Raises:
        ValidationFailed: They are more than 16 pairs, or not strings of the right lengths.
    """
    problems = []
    if not isinstance(metadata, Mapping):
        raise ValidationFailed.of("Not a valid mapping type.", "metadata")
    if len(metadata) > MAX_METADATA:
        problems.append(Problem(("metadata",), f"Longer than maximum length {MAX_METADATA}."))
    for key, value in list(metadata.items())[:MAX_METADATA]:
        if not (is_whole(key) and 1 <= len(key) <= MAX_METADATA_KEY):
            problems.append(
                Problem(("metadata",), f"A key is not a string of 1 to {MAX_METADATA_KEY} characters.")
            )
        elif not (is_whole(value) and len(value) <= MAX_METADATA_VALUE):
            problem = f"Not a string of at most {MAX_METADATA_VALUE} characters."
            problems.append(Problem(("metadata", key), problem))
    if problems:
        raise ValidationFailed(problems)
