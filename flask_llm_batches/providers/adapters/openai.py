"""OpenAI: streams the upload, makes fast status calls, and reads every row of the results."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import msgspec

from flask_llm_batches.batch import Batch
from flask_llm_batches.providers.adapters.base import Adapter, Page, Submission
from flask_llm_batches.providers.downloads import ACCEPTED, unpacked

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class OpenAIAdapter(Adapter):
    """OpenAI, through the SDK's client where any-llm loses data.

    any-llm would read the whole input file. It would drop ``has_more`` of lists, and the error file of
    results. It would return no results of an expired or cancelled batch. Status calls do not use the SDK's
    models, which would take a fifth of the time of a call.
    """

    # https://developers.openai.com/api/docs/guides/batch
    max_requests: ClassVar[int | None] = 50_000
    max_bytes: ClassVar[int | None] = 200 * 1024 * 1024
    api_base_has_version: ClassVar[bool | None] = True
    keeps_metadata: ClassVar[bool] = True
    streams_upload: ClassVar[bool] = True
    streams_results: ClassVar[bool] = True
    leaves_files: ClassVar[bool] = True

    @property
    def _client(self) -> AsyncOpenAI:
        client: AsyncOpenAI = self.llm.client  # type: ignore[attr-defined]  # AnyLLM does not declare it
        return client

    async def upload(self, spool: Path) -> str:
        with spool.open("rb") as file:
            uploaded: Any = await self._client.files.create(file=file, purpose="batch")
        if not isinstance(file_id := getattr(uploaded, "id", None), str):
            raise ValueError(f"the answer to the upload is not a file but {type(uploaded).__name__}")
        return file_id

    async def create(self, uploaded: str, submission: Submission) -> Batch:
        answer = await self._client.batches.with_raw_response.create(
            input_file_id=uploaded,
            endpoint=submission.endpoint,  # type: ignore[arg-type]  # the SDK may not know all
            completion_window=submission.completion_window,  # type: ignore[arg-type]
            metadata=submission.metadata,
            **self.batch_args,
        )
        return self._read(msgspec.json.decode(answer.content))

    async def retrieve(self, batch_id: str) -> Batch:
        return self._read(await self._client.get(_path(batch_id), cast_to=object))

    async def cancel(self, batch_id: str) -> Batch:
        return self._read(await self._client.post(f"{_path(batch_id)}/cancel", cast_to=object))

    async def list(self, after: str | None, limit: int) -> Page:
        parameters: dict[str, object] = {"limit": limit} | ({"after": after} if after else {})
        answer = await self._client.get("/batches", options={"params": parameters}, cast_to=object)
        return self._page(answer, limit)

    async def download(self, batch: Batch) -> AsyncGenerator[bytes, None]:
        for file_id in self.files(batch):
            async with self._client.files.with_streaming_response.content(
                file_id, extra_headers=ACCEPTED
            ) as content:
                async for chunk in unpacked(content.http_response):
                    yield chunk
            yield b"\n"  # the last line of a file may have no line feed


def _path(batch_id: str) -> str:
    return f"/batches/{quote(batch_id, safe='')}"
