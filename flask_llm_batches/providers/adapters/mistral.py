"""Mistral: streams the upload, reads the rows of failed requests, and lists the page after an id."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast
from urllib.parse import quote

import msgspec

from flask_llm_batches.batch import Batch
from flask_llm_batches.errors import BatchNotFound, ValidationFailed
from flask_llm_batches.providers.adapters.base import Adapter, Page, Submission
from flask_llm_batches.providers.downloads import ACCEPTED, unpacked

if TYPE_CHECKING:
    from mistralai.client import Mistral

_STATUSES = {
    "QUEUED": "validating",
    "RUNNING": "in_progress",
    "SUCCESS": "completed",
    "FAILED": "failed",
    "TIMEOUT_EXCEEDED": "expired",
    "CANCELLATION_REQUESTED": "cancelling",
    "CANCELLED": "cancelled",
}
_PAGE, _MAX_PAGES = 100, 1000


class MistralAdapter(Adapter):
    """Mistral, through the SDK's client where any-llm loses data.

    any-llm would read the whole input file three times. It would drop the errors of a failed batch, and the
    error file of results. It would return no results of an expired or cancelled batch, and cannot list the
    page after an id.
    """

    # https://docs.mistral.ai/capabilities/batch
    max_requests: ClassVar[int | None] = 100_000
    max_bytes: ClassVar[int | None] = 512 * 1024 * 1024
    api_base_has_version: ClassVar[bool | None] = False
    keeps_metadata: ClassVar[bool] = True
    streams_upload: ClassVar[bool] = True
    streams_results: ClassVar[bool] = True
    leaves_files: ClassVar[bool] = True

    @property
    def _client(self) -> Mistral:
        client: Mistral = self.llm.client  # type: ignore[attr-defined]  # AnyLLM does not declare it
        return client

    @property
    def http_client(self) -> Any:
        return self._client.sdk_configuration.async_client

    @classmethod
    def check(cls, submission: Submission) -> None:
        if not re.fullmatch(r"[1-9][0-9]{0,3}h", submission.completion_window):
            raise ValidationFailed.of("Not a number of hours, such as 24h.", "completion_window")

    async def upload(self, spool: Path) -> str:
        with spool.open("rb") as file:
            uploaded = await self._client.files.upload_async(
                file={"file_name": spool.name, "content": file}, purpose="batch"
            )
        return uploaded.id

    async def create(self, uploaded: str, submission: Submission) -> Batch:
        creating = self._client.batch.jobs.create_async(
            input_files=[uploaded],
            model=submission.model,
            endpoint=cast("Any", submission.endpoint),  # the SDK may not know all
            timeout_hours=int(submission.completion_window.removesuffix("h")),
            metadata=submission.metadata,
            **self.batch_args,
        )
        return self._batch(await _answer(creating))

    async def retrieve(self, batch_id: str) -> Batch:
        # The SDK does not quote ids in paths.
        job_id = quote(batch_id, safe="")
        return self._batch(await _answer(self._client.batch.jobs.get_async(job_id=job_id)))

    async def cancel(self, batch_id: str) -> Batch:
        job_id = quote(batch_id, safe="")
        return self._batch(await _answer(self._client.batch.jobs.cancel_async(job_id=job_id)))

    async def list(self, after: str | None, limit: int) -> Page:
        """List jobs. Mistral's pages have numbers, so all pages up to the id are fetched, too.

        Raises:
            BatchNotFound: There is no job with the id ``after``.
        """
        found: list[Batch] = []
        awaiting = after
        page = 0
        while True:
            jobs = await self._jobs(page, _PAGE)
            for job in jobs:
                if awaiting is None:
                    found.append(job)
                elif job.id == awaiting:
                    awaiting = None
            page += 1
            if len(found) > limit or len(jobs) < _PAGE or page == _MAX_PAGES:
                break
        if awaiting is not None:
            raise BatchNotFound(f"Batch '{awaiting}' not found")
        return Page(found[:limit], has_more=len(found) > limit)

    async def page(self, cursor: str | None, limit: int) -> tuple[Page, str | None]:
        """Return a page by its number. ``list`` would fetch all pages before it again."""
        number = int(cursor or 0)
        jobs = await self._jobs(number, limit)
        return Page(jobs, has_more=len(jobs) >= limit), str(number + 1)

    async def _jobs(self, page: int, size: int) -> Sequence[Batch]:
        answer = await _answer(self._client.batch.jobs.list_async(page=page, page_size=size))
        is_empty = isinstance(answer, dict) and answer.get("total") == 0  # an empty list may have no ``data``
        return [] if is_empty else self._page(answer, size).batches

    async def download(self, batch: Batch) -> AsyncGenerator[bytes, None]:
        for file_id in self.files(batch):
            content = await self._client.files.download_async(
                file_id=quote(file_id, safe=""), http_headers=ACCEPTED
            )
            try:
                async for chunk in unpacked(content):
                    yield chunk
            finally:
                await content.aclose()
            yield b"\n"  # the last line of a file may have no line feed

    def _batch(self, answer: Any) -> Batch:
        if not isinstance(answer, dict):
            return self._read(answer)  # raises the error
        status = answer.get("status")
        status = _STATUSES.get(status, status) if isinstance(status, str) else None
        files, hours = answer.get("input_files"), answer.get("timeout_hours")
        metadata, errors = answer.get("metadata"), answer.get("errors")
        return self._read(
            {
                "id": answer.get("id"),
                "endpoint": answer.get("endpoint"),
                "model": answer.get("model"),
                "status": status,
                "errors": {"data": errors} if errors else None,
                "input_file_id": files[0] if isinstance(files, list) and files else None,
                "output_file_id": answer.get("output_file"),
                "error_file_id": answer.get("error_file"),
                "completion_window": f"{hours}h" if isinstance(hours, int) else None,
                "created_at": answer.get("created_at"),
                "in_progress_at": answer.get("started_at"),
                f"{status}_at": answer.get("completed_at"),
                "request_counts": {
                    "total": answer.get("total_requests"),
                    "completed": answer.get("succeeded_requests"),
                    "failed": answer.get("failed_requests"),
                },
                "metadata": {key: str(value) for key, value in metadata.items()}
                if isinstance(metadata, dict)
                else None,
            }
        )


async def _answer(call: Awaitable[Any]) -> Any:
    """Return the answer as JSON types, even if the SDK rejects it because its models do not match."""
    try:
        return (await call).model_dump(mode="json", warnings=False)
    except Exception as error:
        if type(error).__name__ != "ResponseValidationError":
            raise
        return msgspec.json.decode(cast("Any", error).body)
