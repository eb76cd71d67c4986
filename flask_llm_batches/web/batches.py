"""The views of batches: load, call the service, dump."""

from __future__ import annotations

from io import BytesIO

from flask import Response, request

from flask_llm_batches.batch import Batch
from flask_llm_batches.core.idempotency import HEADER as IDEMPOTENCY_KEY
from flask_llm_batches.core.requests import LONGEST_REQUEST
from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.errors import Forbidden, UnsupportedMediaType
from flask_llm_batches.jsonl import NDJSON, split_lines
from flask_llm_batches.web.auth import caller
from flask_llm_batches.web.body import read_body
from flask_llm_batches.web.responses import answer
from flask_llm_batches.web.schemas import load_query
from flask_llm_batches.web.schemas.batches import (
    BatchListSchema,
    BatchQuerySchema,
    BatchSchema,
    CheckedSchema,
    CreateQuerySchema,
    LinesQuerySchema,
    ListQuerySchema,
    RetrieveQuerySchema,
    load_create,
)
from flask_llm_batches.web.schemas.detail import DetailSchema
from flask_llm_batches.web.schemas.results import ResultsQuerySchema
from flask_llm_batches.web.stream import caller_waits, json_stream, ndjson_stream

# Made once: a schema copies all its fields when it is made.
BATCH, BATCH_LIST = BatchSchema(exclude=["owner"]), BatchListSchema(exclude=["data.owner"])
DETAIL, ADMINS_DETAIL = DetailSchema(exclude=["owner"]), DetailSchema()
ADMINS_BATCH, ADMINS_LIST, CHECKED = BatchSchema(), BatchListSchema(), CheckedSchema()
CREATE_QUERY, LINES_QUERY = CreateQuerySchema(), LinesQuerySchema()
BATCH_QUERY, LIST_QUERY, RESULTS_QUERY = BatchQuerySchema(), ListQuerySchema(), ResultsQuerySchema()
RETRIEVE_QUERY = RetrieveQuerySchema()

ROW_TYPES = ("application/json", *NDJSON)


def create() -> Response:
    body = read_body()
    if request.mimetype in NDJSON:
        data = load_query(LINES_QUERY) | {"requests": split_lines(body, longest=LONGEST_REQUEST)}
    else:
        content = BytesIO()  # a list of chunks and the bytes joined from it would be twice the body
        for chunk in body:
            if not request.is_json:
                raise UnsupportedMediaType(f"The Content-Type of a create must be {' or '.join(ROW_TYPES)}")
            content.write(chunk)
        dry_run = load_query(CREATE_QUERY)["dry_run"]
        data = load_create(content.getvalue())
        data["dry_run"] |= dry_run
    user, dry_run = data.pop("user"), data.pop("dry_run")
    principal = caller()
    if user not in (None, principal.owner) and not principal.admin:
        raise Forbidden("Only an admin may name another user than themselves", param="user")
    if data["on_results"] is not None:
        current_llm_batches.handlers.check(data["on_results"], http=True)
    if data["webhook"] is not None:
        current_llm_batches.webhooks.check(data["webhook"], http=True)
    # As a Principal, so that the host's function of limits sees an admin who creates for themselves.
    data["owner"] = principal if user in (None, principal.owner) else user
    data["idempotency_key"] = request.headers.get(IDEMPOTENCY_KEY)
    if dry_run:
        return answer(CHECKED, current_llm_batches.check(**data))
    batch = current_llm_batches.create(requested_by=principal.owner, **data)
    return _answer_created(batch)


def list_batches() -> Response:
    query = load_query(LIST_QUERY)
    principal = caller()
    owner = query.pop("owner", None)
    if owner not in (None, principal.owner) and not principal.admin:
        raise Forbidden("Only an admin may list the batches of another owner", param="owner")
    page = current_llm_batches.list(owner=owner or principal, **query)
    return answer(ADMINS_LIST if principal.admin else BATCH_LIST, page)


def retrieve(batch_id: str) -> Response:
    query = load_query(RETRIEVE_QUERY)
    include = query.pop("include", None)
    batch_id = batch_id.removesuffix("/")
    batch = current_llm_batches.retrieve(batch_id, owner=caller(), **query)
    if include is None:
        return _answer_batch(batch)
    detail = current_llm_batches.detail(batch_id, owner=caller(), **query)
    schema = ADMINS_DETAIL if caller().admin else DETAIL
    return answer(schema, batch.to_dict() | {"owner": batch.owner} | detail._asdict())


def retry(batch_id: str) -> Response:
    query = load_query(BATCH_QUERY)
    batch = current_llm_batches.retry(
        batch_id,
        owner=caller(),
        requested_by=caller().owner,
        idempotency_key=request.headers.get(IDEMPOTENCY_KEY),
        **query,
    )
    return _answer_created(batch)


def cancel(batch_id: str) -> Response:
    query = load_query(BATCH_QUERY)
    return _answer_batch(current_llm_batches.cancel(batch_id, owner=caller(), **query))


def results(batch_id: str) -> Response:
    query = load_query(RESULTS_QUERY)
    mimetype = request.accept_mimetypes.best_match(ROW_TYPES, "application/json")
    if request.method == "HEAD":
        current_llm_batches.check_results(batch_id, owner=caller(), provider=query.get("provider"))
        return Response(iter(()), mimetype=mimetype)  # the length is not known yet
    rows = current_llm_batches.results(
        batch_id,
        owner=caller(),
        requested_by=caller().owner,
        keep_waiting=caller_waits(request.environ),
        **query,
    )
    response = Response((ndjson_stream if mimetype in NDJSON else json_stream)(rows), mimetype=mimetype)
    response.call_on_close(rows.close)
    return response


def _answer_created(batch: Batch) -> Response:
    response = _answer_batch(batch)
    if batch.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _answer_batch(batch: Batch) -> Response:
    return answer(ADMINS_BATCH if caller().admin else BATCH, batch)
