"""Any provider with a batch API, by any-llm's public calls alone."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec

from flask_llm_batches.batch import Batch, Row, RowError

if TYPE_CHECKING:
    from any_llm import AnyLLM
    from any_llm.types.batch import BatchResultItem


class Page(NamedTuple):
    """A page of a provider's list, newest first."""

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


def carried(body: Mapping[str, msgspec.Raw], taken: Mapping[str, str], unless: str) -> dict[str, Any]:
    """Give the parameters of a chat completion under a provider's names for them, but for nulls.

    Args:
        body: The chat completion.
        taken: The names that can be carried, with the provider's.
        unless: What to say of others.

    Raises:
        Unsuitable: One cannot be carried, or two have one name there.
    """
    found: dict[str, Any] = {}
    for name, value in body.items():
        if value == _NULL:
            continue
        if name not in taken:
            raise Unsuitable(unless, "body", name)
        if taken[name] in found:
            raise Unsuitable(f"Given twice: the provider has {taken[name]!r} for it only.", "body", name)
        found[taken[name]] = value
    return found


_NULL = msgspec.Raw(b"null")


class _Response(msgspec.Struct, gc=False):
    status_code: int | None = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct, gc=False):
    """A line of an output or error file."""

    custom_id: str
    response: _Response | None = None
    error: Any = None


def said(body: object) -> Mapping[str, Any]:
    """Give what an error's body says: in its ``error``, in itself as Mistral's does, or as text."""
    inner = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(inner, dict):
        return inner
    return {"message": inner if isinstance(inner, str) else None}


_decode = msgspec.json.Decoder(_Line).decode
_NO_RESPONSE = _Response()


class Adapter:
    """One provider, through one any-llm client.

    Attributes:
        max_requests: How many requests the provider takes in a batch, if it says so.
        max_bytes: How many bytes they may have.
        known_args: Which ``batch_args`` a create takes; None for those that the SDK's does.
        keeps_metadata: Whether a batch comes back with the metadata that it was made with.
        streams_upload: Whether a submit reads the spool as it goes. Otherwise an SDK holds the whole of it
            and is busy with it for seconds, so it runs apart from everybody's status calls.
        streams_results: Whether results come by ``download`` and ``row``. Otherwise an SDK makes one list of
            them, apart from everybody's status calls, and they come by ``results``.
    """

    max_requests: ClassVar[int | None] = None
    max_bytes: ClassVar[int | None] = None
    known_args: ClassVar[frozenset[str] | None] = None
    keeps_metadata: ClassVar[bool] = False
    streams_upload: ClassVar[bool] = False
    streams_results: ClassVar[bool] = False

    def __init__(
        self, llm: AnyLLM, provider: str, redact: Callable[[str], str], batch_args: Mapping[str, Any]
    ) -> None:
        self.llm = llm
        self.provider = provider
        self.redact = redact
        self.batch_args = batch_args

    @classmethod
    def check(cls, submission: Submission) -> None:
        """Find what the provider would not take, before anything is sent.

        Raises:
            ValidationFailed: It would not take that endpoint or window.
            UnsupportedProvider: It would take nothing.
        """

    @classmethod
    def line(cls, custom_id: str, body: dict[str, msgspec.Raw], endpoint: str) -> dict[str, Any]:
        """Give a request as a line of the spool: OpenAI's, unless the provider has another form.

        Raises:
            Unsuitable: Something of it would be lost on the way.
        """
        return {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}

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
                **self.batch_args,
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

    def download(self, batch: Batch) -> AsyncGenerator[bytes, None]:
        """Give the lines of the results as they come, cut into chunks anywhere."""
        raise NotImplementedError

    def row(self, line: bytes, batch: Batch) -> Row:  # noqa: ARG002  # others have several kinds of rows
        """Read a line of the results, in the form of OpenAI's output and error files; not on the event loop.

        Raises:
            ValueError: It is no row.
        """
        entry = _decode(line)
        response = entry.response or _NO_RESPONSE
        if response.status_code == 200 and not entry.error:
            if bytes(memoryview(response.body)[:1]) != b"{":
                raise ValueError("a response without a body")
            return Row(entry.custom_id, response.body)
        error = said(entry.error or msgspec.json.decode(response.body))
        code = error.get("code") or error.get("type") or response.status_code
        return Row(entry.custom_id, error=self.row_error(code, error.get("message")))

    async def results(self, batch: Batch) -> Sequence[Row]:
        """Fetch all results.

        Raises:
            any_llm.BatchNotCompleteError: any-llm gives none of a batch of this status.
        """
        answer = await self.llm.aretrieve_batch_results(batch.id)
        return [self._given(item) for item in answer.results]

    def _given(self, item: BatchResultItem) -> Row:
        if item.result is None:
            error = item.error
            return Row(item.custom_id, error=self.row_error(error and error.code, error and error.message))
        result = msgspec.json.encode(item.result.model_dump(mode="json", exclude_unset=True))
        return Row(item.custom_id, msgspec.Raw(result))

    def row_error(self, code: object, message: object) -> RowError:
        """Say why a request has no result, in the provider's words without keys."""
        return RowError(str(code or "unknown"), self.redact(str(message or "The provider gave no reason")))

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
