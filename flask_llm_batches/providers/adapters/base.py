"""Any provider with a batch API, through any-llm's public calls only."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec

from flask_llm_batches.batch import Batch, Row, RowError
from flask_llm_batches.errors import ResultsGone
from flask_llm_batches.providers.adapters.lines import NO_RESPONSE, NULL, decode_line, error_of, read_reason
from flask_llm_batches.providers.http import guard

if TYPE_CHECKING:
    from any_llm import AnyLLM
    from any_llm.types.batch import BatchResultItem


class Page(NamedTuple):
    """A page of a list of batches, newest first.

    Attributes:
        batches: The batches.
        has_more: Whether there is a next page.
    """

    batches: Sequence[Batch]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Submission:
    """What a submit carries besides its requests."""

    model: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str]


class Unsuitable(Exception):
    """A request that would not reach the provider as it is.

    Attributes:
        path: Where: ``("body", "tools")``.
        parameter: Whether it is a parameter that the provider does not take.
    """

    def __init__(self, message: str, *path: str | int, parameter: bool = True) -> None:
        super().__init__(message)
        self.path = path
        self.parameter = parameter


def rename_parameters(
    body: Mapping[str, msgspec.Raw], taken: Mapping[str, str], refusal: str
) -> dict[str, Any]:
    """Return the parameters of a chat completion under the provider's names for them, without nulls.

    Args:
        body: The chat completion.
        taken: The names that can be passed on, with the provider's.
        refusal: The message for others.

    Raises:
        Unsuitable: One cannot be passed on, or two have the same name there.
    """
    found: dict[str, Any] = {}
    for name, value in body.items():
        if value == NULL:
            continue
        if name not in taken:
            raise Unsuitable(refusal, "body", name)
        if taken[name] in found:
            raise Unsuitable(f"Given twice: another parameter means {taken[name]!r}, too.", "body", name)
        found[taken[name]] = value
    return found


class Adapter:
    """One provider, through one any-llm client.

    Attributes:
        max_requests: How many requests the provider takes in a batch, if it says so.
        max_bytes: How many bytes they may have.
        api_base_has_version: Whether an ``api_base`` includes the version of the API, such as ``/v1``. False
            if the SDK adds it; None if that is not known.
        known_args: The ``batch_args`` that a create takes; None for all that the SDK takes.
        keeps_metadata: Whether a batch comes back with the metadata that it was made with.
        streams_upload: Whether a submit reads the spool piece by piece. Otherwise an SDK holds all of it and
            blocks its event loop for seconds, so it gets a loop of its own.
        streams_results: Whether results are read with ``download`` and ``row``. Otherwise they are read with
            ``results``: an SDK makes one list of them, on an event loop of its own.
        leaves_files: Whether requests and results are files that the batch names.
    """

    max_requests: ClassVar[int | None] = None
    max_bytes: ClassVar[int | None] = None
    api_base_has_version: ClassVar[bool | None] = None
    known_args: ClassVar[frozenset[str] | None] = None
    keeps_metadata: ClassVar[bool] = False
    streams_upload: ClassVar[bool] = False
    streams_results: ClassVar[bool] = False
    leaves_files: ClassVar[bool] = False

    def __init__(
        self, llm: AnyLLM, provider: str, redact: Callable[[str], str], batch_args: Mapping[str, Any]
    ) -> None:
        self.llm = llm
        guard(self.http_client, limited=self.streams_results)
        self.provider = provider
        self.redact = redact
        self.batch_args = batch_args

    @classmethod
    def client_args(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments of any-llm's client: ``given``, and what can only be set when it is made."""
        return given

    @property
    def http_client(self) -> Any:
        """The httpx client of the SDK; None where it cannot be reached."""
        # Most SDKs are made by Stainless, and have it there.
        return getattr(getattr(self.llm, "client", None), "_client", None)

    @classmethod
    def check(cls, submission: Submission) -> None:
        """Check that the provider takes such requests, before anything is sent.

        Raises:
            ValidationFailed: It would not take that endpoint or window.
            UnsupportedProvider: It would take nothing.
        """

    @classmethod
    def line(cls, custom_id: str, body: dict[str, msgspec.Raw], endpoint: str) -> dict[str, Any]:
        """Return a request as a line of the spool: in OpenAI's form, unless the provider has its own.

        Raises:
            Unsuitable: Something of it would be lost on the way.
        """
        return {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}

    async def upload(self, spool: Path) -> str:
        """Upload the requests, if that is a call of its own. Before it has ended, there is no batch.

        Returns:
            What ``create`` takes.
        """
        return str(spool)

    async def create(self, uploaded: str, submission: Submission) -> Batch:
        """Create the batch. If this fails without an answer, there may be one."""
        return self._batch(
            await self.llm.acreate_batch(
                input_file_path=uploaded,
                endpoint=submission.endpoint,
                completion_window=submission.completion_window,
                metadata=submission.metadata,
                **self.batch_args,
            )
        )

    @classmethod
    def is_final(cls, batch: Batch) -> bool:
        """Return whether nothing about a batch that has ended will change."""
        # Failed rows may be in the output file, so results are read without an error file, too.
        _, failed = _counted(batch)
        return not (cls.leaves_files and failed and not batch.error_file_id) or batch.settled

    @classmethod
    def promised(cls, batch: Batch) -> tuple[int, int]:
        """Return the least number of results, and of rows, that a batch which has ended must have."""
        if not cls.streams_results:
            return 0, 0  # SDKs may leave rows out
        completed, failed = _counted(batch)
        if cls.leaves_files:
            completed = completed if batch.output_file_id else 0
            # What was not executed is counted as failed, too, and need not have a row.
            failed = failed if batch.error_file_id and batch.status == "completed" else 0
        return completed, completed + failed

    async def retrieve(self, batch_id: str) -> Batch:
        """Retrieve a batch."""
        return self._batch(await self.llm.aretrieve_batch(batch_id))

    async def cancel(self, batch_id: str) -> Batch:
        """Cancel a batch."""
        return self._batch(await self.llm.acancel_batch(batch_id))

    async def list(self, after: str | None, limit: int) -> Page:
        """List the provider's batches. After a full page, there is assumed to be a next one."""
        batches = [self._batch(batch) for batch in await self.llm.alist_batches(after=after, limit=limit)]
        return Page(batches, has_more=len(batches) >= limit)

    async def page(self, cursor: str | None, limit: int) -> tuple[Page, str | None]:
        """Return the next page of a walk over all batches, and the cursor of the one after it.

        Args:
            cursor: What came with the page before; None for the first page.
            limit: The length of the page.
        """
        page = await self.list(cursor, limit)
        return page, page.batches[-1].id if page.batches else None

    def download(self, batch: Batch) -> AsyncGenerator[bytes, None]:
        """Yield the lines of the results, in chunks that end anywhere."""
        raise NotImplementedError

    @staticmethod
    def files(batch: Batch) -> Sequence[str]:
        """Return the ids of the files that have the rows.

        Raises:
            ResultsGone: There is none, though there are results.
        """
        if batch.status == "completed" and _counted(batch)[0] and not batch.output_file_id:
            raise ResultsGone(batch.id, provider=batch.provider)
        return [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id]

    def row(self, line: bytes, batch: Batch) -> Row:  # noqa: ARG002  # others have several kinds of rows
        """Read a line of the results, in the form of OpenAI's output and error files; not on the event loop.

        Raises:
            ValueError: It is no row.
        """
        entry = decode_line(line)
        response = entry.response or NO_RESPONSE
        failure = None if entry.error == NULL else read_reason(entry.error)
        if response.status_code == 200 and not failure:
            if bytes(memoryview(response.body)[:1]) != b"{":
                raise ValueError("a response without a body")
            return Row(entry.custom_id, response.body)
        error = error_of(failure or read_reason(response.body))
        code = error.get("code") or error.get("type") or response.status_code
        return Row(entry.custom_id, error=self.row_error(code, error.get("message"), response.status_code))

    async def results(self, batch: Batch) -> Sequence[Row]:
        """Fetch all results.

        Raises:
            any_llm.BatchNotCompleteError: any-llm has no results of a batch with this status.
        """
        answer = await self.llm.aretrieve_batch_results(batch.id)
        return [self._row_of(item) for item in answer.results]

    def _row_of(self, item: BatchResultItem) -> Row:
        if item.result is None:
            error = item.error
            return Row(item.custom_id, error=self.row_error(error and error.code, error and error.message))
        result = msgspec.json.encode(item.result.model_dump(mode="json", exclude_unset=True))
        return Row(item.custom_id, msgspec.Raw(result))

    def row_error(self, code: object, message: object, status: int | None = None) -> RowError:
        """Return the error of a request, with the provider's message, without keys."""
        text = self.redact(str(message or "The provider gave no reason"))
        return RowError.of(self.redact(str(code or "unknown"))[:100], text, status)

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
        # The SDKs return an answer without checking it: it may be text, or another object.
        return self._read(
            answer.model_dump(mode="json", warnings=False) if hasattr(answer, "model_dump") else answer
        )

    def _read(self, data: object) -> Batch:
        if not isinstance(data, dict):
            raise ValueError(f"the answer is no batch but {type(data).__name__}")
        batch = Batch.from_dict(data, self.provider)
        for problem in (batch.errors or {}).get("data", ()):
            problem.update(
                {name: self.redact(text) for name, text in problem.items() if isinstance(text, str)}
            )
        return _about_to_end(batch) if self.leaves_files and _lacks_files(batch) else batch

    def _page(self, answer: object, limit: int) -> Page:
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(answer, dict) or not isinstance(data, list):
            raise ValueError(f"the answer is no list of batches but {type(answer).__name__}")
        has_more = answer.get("has_more")
        return Page(
            [self._batch(one) for one in data],
            has_more=has_more if isinstance(has_more, bool) else len(data) >= limit,
        )


def _counted(batch: Batch) -> tuple[int, int]:
    counts = batch.request_counts or {}
    completed, failed = (counts.get(name) for name in ("completed", "failed"))
    return completed if isinstance(completed, int) else 0, failed if isinstance(failed, int) else 0


_BEFORE = {"completed": "finalizing", "expired": "finalizing", "cancelled": "cancelling"}


def _lacks_files(batch: Batch) -> bool:
    """Return whether a batch is shown as ended although its files are not there yet."""
    if batch.status not in _BEFORE or batch.output_file_id or batch.settled:
        return False
    completed, failed = _counted(batch)
    return completed > 0 or (failed > 0 and batch.status == "completed" and not batch.error_file_id)


def _about_to_end(batch: Batch) -> Batch:
    times: dict[str, Any] = {f"{batch.status}_at": None}
    return replace(batch, status=_BEFORE[batch.status], **times)
