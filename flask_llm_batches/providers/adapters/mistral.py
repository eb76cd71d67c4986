"""Mistral: an upload from the open file, failed rows too, and lists that page by id."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from flask_llm_batches.batch import Batch
from flask_llm_batches.errors import BatchNotFound, ValidationFailed
from flask_llm_batches.providers.adapters.base import Adapter, Page, Submission

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
_PAGE = 100


class MistralAdapter(Adapter):
    """Mistral, through the SDK's client where any-llm loses something.

    It would read the whole input file three times over, drop the reasons of a failed batch, leave the error
    file out of the results, give nothing of a batch that expired or was cancelled, and list no page by an id.
    """

    # https://docs.mistral.ai/capabilities/batch
    max_requests: ClassVar[int | None] = 100_000
    max_bytes: ClassVar[int | None] = 512 * 1024 * 1024
    keeps_metadata: ClassVar[bool] = True
    streams_upload: ClassVar[bool] = True
    streams_results: ClassVar[bool] = True

    @property
    def _client(self) -> Mistral:
        client: Mistral = self.llm.client  # type: ignore[attr-defined]  # AnyLLM does not declare it
        return client

    @classmethod
    def check(cls, submission: Submission) -> None:
        if not re.fullmatch(r"[1-9][0-9]{0,3}h", submission.completion_window):
            raise ValidationFailed({"completion_window": ["Not a number of hours, such as 24h."]})

    async def upload(self, spool: Path) -> str:
        with spool.open("rb") as file:
            uploaded = await self._client.files.upload_async(
                file={"file_name": spool.name, "content": file}, purpose="batch"
            )
        return uploaded.id

    async def create(self, uploaded: str, submission: Submission) -> Batch:
        return self._job(
            await self._client.batch.jobs.create_async(
                input_files=[uploaded],
                model=submission.model,
                endpoint=cast("Any", submission.endpoint),  # new ones come without a new SDK
                timeout_hours=int(submission.completion_window.removesuffix("h")),
                metadata=submission.metadata,
                **self.batch_args,
            )
        )

    async def retrieve(self, batch_id: str) -> Batch:
        return self._job(await self._client.batch.jobs.get_async(job_id=batch_id))

    async def cancel(self, batch_id: str) -> Batch:
        return self._job(await self._client.batch.jobs.cancel_async(job_id=batch_id))

    async def list(self, after: str | None, limit: int) -> Page:
        """List jobs; Mistral numbers its pages, so those up to the id are asked for, too.

        Raises:
            BatchNotFound: There is no job ``after``.
        """
        found: list[Batch] = []
        awaiting = after
        page = 0
        while True:
            answer = await self._client.batch.jobs.list_async(page=page, page_size=_PAGE)
            jobs = [self._job(job) for job in answer.data or []]
            for job in jobs:
                if awaiting is None:
                    found.append(job)
                elif job.id == awaiting:
                    awaiting = None
            if len(found) > limit or len(jobs) < _PAGE:
                break
            page += 1
        if awaiting is not None:
            raise BatchNotFound(f"Batch '{awaiting}' not found")
        return Page(found[:limit], has_more=len(found) > limit)

    async def download(self, batch: Batch) -> AsyncGenerator[bytes, None]:
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self._client.files.download_async(file_id=file_id)
            try:
                async for chunk in content.aiter_bytes():
                    yield chunk
            finally:
                await content.aclose()
            yield b"\n"  # the file's last line may lack its own

    def _job(self, job: Any) -> Batch:
        data = job.model_dump(mode="json")
        status = _STATUSES.get(str(data["status"]), "in_progress")
        times = {f"{status}_at": data["completed_at"]} if data.get("completed_at") else {}
        return self._read(
            {
                "id": data["id"],
                "endpoint": data.get("endpoint"),
                "model": data.get("model"),
                "status": status,
                "errors": {"object": "list", "data": [_reason(error) for error in data["errors"]]}
                if data.get("errors")
                else None,
                "input_file_id": next(iter(data.get("input_files") or []), None),
                "output_file_id": data.get("output_file"),
                "error_file_id": data.get("error_file"),
                "completion_window": f"{data['timeout_hours']}h" if data.get("timeout_hours") else None,
                "created_at": data["created_at"],
                "in_progress_at": data.get("started_at"),
                **times,
                "request_counts": {
                    "total": data["total_requests"],
                    "completed": data["succeeded_requests"],
                    "failed": data["failed_requests"],
                },
                "metadata": {key: str(value) for key, value in (data.get("metadata") or {}).items()} or None,
            }
        )


def _reason(error: dict[str, Any]) -> dict[str, Any]:
    return {"code": None, "line": None, "message": error.get("message"), "param": None}
