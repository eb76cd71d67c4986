"""Any provider with a batch API, by any-llm's public calls alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from flask_llm_batches.batch import Batch

if TYPE_CHECKING:
    from any_llm import AnyLLM

Row = dict[str, Any]
"""``{"custom_id", "result", "error"}``; exactly one of the last two is null."""


class Page(NamedTuple):
    """A page of a provider's list, newest first."""

    batches: Sequence[Batch]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Submission:
    """What a submit carries besides its requests."""

    endpoint: str
    completion_window: str
    metadata: dict[str, str]


class Adapter:
    """One provider, through one any-llm client.

    Attributes:
        streams_upload: Whether a submit reads the spool as it goes. Otherwise an SDK holds the whole of it
            and is busy with it for seconds, so it runs apart from everybody's status calls.
    """

    streams_upload: ClassVar[bool] = False

    def __init__(self, llm: AnyLLM, provider: str, redact: Callable[[str], str]) -> None:
        self.llm = llm
        self.provider = provider
        self.redact = redact

    async def upload(self, spool: Path) -> str:
        """Hand over the requests, where that is a step of its own; while it lasts there is no batch.

        Returns:
            What ``create`` makes the batch of.
        """
        return str(spool)

    async def create(self, uploaded: str, submission: Submission) -> Batch:
        """Make the batch; if this fails without an answer there may be one."""
        return self._batch(
            await self.llm.acreate_batch(
                input_file_path=uploaded,
                endpoint=submission.endpoint,
                completion_window=submission.completion_window,
                metadata=submission.metadata,
            )
        )

    async def retrieve(self, batch_id: str) -> Batch:
        """Ask after a batch."""
        return self._batch(await self.llm.aretrieve_batch(batch_id))

    async def cancel(self, batch_id: str) -> Batch:
        """Ask for a batch to be cancelled."""
        return self._batch(await self.llm.acancel_batch(batch_id))

    async def list(self, after: str | None, limit: int) -> Page:
        """List the provider's batches; a full page is taken to have a next one."""
        batches = [self._batch(batch) for batch in await self.llm.alist_batches(after=after, limit=limit)]
        return Page(batches, has_more=len(batches) >= limit)

    async def results(self, batch: Batch) -> Sequence[Row]:
        """Fetch all results.

        Raises:
            any_llm.BatchNotCompleteError: any-llm gives none of a batch of this status.
        """
        answer = await self.llm.aretrieve_batch_results(batch.id)
        return [
            {
                "custom_id": item.custom_id,
                "result": item.result and item.result.model_dump(mode="json", exclude_unset=True),
                "error": item.error
                and {"code": str(item.error.code), "message": self.redact(str(item.error.message))},
            }
            for item in answer.results
        ]

    async def close(self) -> None:
        """Close the client's connections; any-llm's clients have no close of their own."""
        client = getattr(self.llm, "client", None)
        for name in ("aclose", "close"):
            if callable(close := getattr(client, name, None)):
                closing = close()
                if inspect.isawaitable(closing):
                    await closing
                return
        if callable(leave := getattr(client, "__aexit__", None)):
            await leave(None, None, None)

    def _batch(self, answer: Any) -> Batch:
        # The SDKs hand on what a provider answered without checking it: text, or an object of another kind.
        return self._read(
            answer.model_dump(mode="json", warnings=False) if hasattr(answer, "model_dump") else answer
        )

    def _read(self, data: object) -> Batch:
        if not isinstance(data, dict):
            raise ValueError(f"the answer is no batch but {type(data).__name__}")
        for problem in (data.get("errors") or {}).get("data") or []:
            problem["message"] = self.redact(str(problem.get("message")))
        return Batch.from_dict(data, self.provider)
