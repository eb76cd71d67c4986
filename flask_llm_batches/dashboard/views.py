"""The pages: read the query, call the service, render."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from flask import Response, redirect, render_template, request, url_for
from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response as BaseResponse

from flask_llm_batches.batch import FINISHED, STATUSES, own_id
from flask_llm_batches.core.inspected import MOST_COUNTED
from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.dashboard import shown
from flask_llm_batches.errors import Forbidden, LLMBatchesError, ValidationFailed
from flask_llm_batches.principal import Owner
from flask_llm_batches.store.usage import UsageSum
from flask_llm_batches.web.auth import caller
from flask_llm_batches.web.schemas import load
from flask_llm_batches.web.schemas.usage import UsageQuerySchema
from flask_llm_batches.web.stream import caller_waits, ndjson_stream
from flask_llm_batches.web.usage import group_name, usage_csv

View = str | BaseResponse | tuple[str, int] | tuple[str, int, dict[str, str]]

_PAGE = 50
_DAYS = 30
_MOST_DAYS = 366  # that a plot has bars for
_MOST_ROWS = 500  # of a table
_MOST_DELIVERED = 100  # rows in one request: those that the page shows
_GROUPS = ("day", "model", "provider", "owner")

_NOTHING_NEW = "", 204

# What a page says after an action. The URL has only the key, so that no link can put its own text on a page.
DONE = {
    "cancel": "The provider was asked to cancel this batch.",
    "retry": "This is the new batch, of the requests that failed.",
    "deliver": "The rows, a hundred at most, were delivered again. What is left of them is below.",
    "notify": "The webhooks are due now. A worker sends them.",
    "revoke": "The key is revoked.",
}


def overview() -> View:
    again = "seen" in request.args
    seen = current_llm_batches.overview(owner=caller(), days=0 if again else _DAYS)
    if _is_known(state := _state(seen._replace(days={}))):
        return _NOTHING_NEW
    today = datetime.now(UTC).date()
    first = today - timedelta(days=_DAYS - 1)
    running = seen.running.total or seen.queued.total
    return render_template(
        "llm_batches/overview.html",
        live=url_for(".overview", seen=state) if running else None,
        seen=seen,
        bars=() if again else shown.spend_by_day(seen.days, first=first, last=today),
        most=MOST_COUNTED,
    )


def batches() -> View:
    query: dict[str, Any] = {name: _arg(name) for name in ("status", "provider", "owner", "search", "after")}
    principal = caller()
    owner: Owner = query["owner"] if principal.admin and query["owner"] else principal
    chosen = {name: query[name] for name in ("status", "provider", "search", "after")}
    page, problem = None, None
    try:
        page = current_llm_batches.browse(owner=owner, limit=_PAGE, **chosen)
    except (ValidationFailed, ValueError) as error:
        problem = str(error)
    if _is_known(state := _state(page, problem)):
        return _NOTHING_NEW
    # A search may read many batches, and is not repeated.
    running = page and not query["search"] and any(not batch.finished for batch in page.batches)
    rendered = render_template(
        "llm_batches/batches.html",
        live=url_for(".batches", **query, seen=state) if running else None,
        page=page,
        problem=problem,
        query=query,
        statuses=sorted(STATUSES),
        providers=sorted(current_llm_batches.settings.providers or ()),
    )
    return rendered, 200 if problem is None else 422


def batch() -> View:
    batch_id, provider = _which()
    if request.method == "POST":
        return _act(batch_id, provider)
    seen = current_llm_batches.inspect(batch_id, owner=caller(), provider=provider)
    before = request.args.get("status")
    if before is not None and before != seen.batch.status:
        # What can be done with it has changed, too: htmx loads the whole page again.
        return "", 204, {"HX-Refresh": "true"}
    if _is_known(state := _state(seen)):
        return _NOTHING_NEW
    failures = exchange = problem = None
    custom_id = request.args.get("custom_id") or None  # not stripped: spaces count
    if "failures" in request.args:
        try:
            failures = current_llm_batches.failures(batch_id, owner=caller(), provider=provider)
        except LLMBatchesError as error:
            problem = str(error)
    if custom_id is not None:
        exchange = current_llm_batches.exchange(batch_id, custom_id, owner=caller(), provider=provider)
    live = url_for(".batch", id=batch_id, provider=provider, status=seen.batch.status, seen=state)
    return render_template(
        "llm_batches/batch.html",
        live=None if seen.batch.finished else live,
        seen=seen,
        batch=seen.batch,
        counts=shown.counts(seen.batch),
        may_fail=seen.batch.status in FINISHED - {"failed"},
        timeline=shown.timeline(seen.batch),
        failures=failures,
        problem=problem,
        custom_id=custom_id,
        exchange=exchange,
        retry_key=secrets.token_urlsafe(16),
        most=_MOST_ROWS,
    )


def _act(batch_id: str, provider: str | None) -> View:
    action = request.form.get("action", "")
    here: dict[str, Any] = {"id": batch_id, "provider": provider}
    if action == "cancel":
        current_llm_batches.cancel(batch_id, owner=caller(), provider=provider)
    elif action == "retry":
        key = request.form.get("key") or None  # a form that is sent twice makes one batch
        made = current_llm_batches.retry(
            batch_id, owner=caller(), requested_by=caller().owner, idempotency_key=key, provider=provider
        )
        here = {"id": made.id, "provider": made.provider}
    elif action in ("deliver", "notify"):
        # They call the host's function, and services of others.
        _admins_only()
        seen = current_llm_batches.inspect(batch_id, owner=caller(), provider=provider)
        if action == "deliver" and seen.set_aside:
            current_llm_batches.deliver_again(own_id(seen.set_aside[0].batch_uid), limit=_MOST_DELIVERED)
        elif action == "notify" and seen.webhooks:
            current_llm_batches.send_again(own_id(seen.webhooks[0].batch_uid))
    else:
        raise BadRequest("There is no such action.")
    return redirect(url_for(".batch", **here, done=action), 303)


def results() -> View:
    batch_id, provider = _which()
    if request.method == "HEAD":  # nothing is downloaded from the provider for it
        current_llm_batches.check_results(batch_id, owner=caller(), provider=provider)
        response = Response(iter(()), mimetype="application/x-ndjson")
    else:
        rows = current_llm_batches.results(
            batch_id,
            owner=caller(),
            requested_by=caller().owner,
            keep_waiting=caller_waits(request.environ),
            provider=provider,
        )
        response = Response(ndjson_stream(rows), mimetype="application/x-ndjson")
        response.call_on_close(rows.close)
    name = re.sub("[^A-Za-z0-9_-]", "_", batch_id)[:100]
    response.headers.set("Content-Disposition", "attachment", filename=f"{name}.jsonl")
    return response


def usage() -> View:
    sums, query, problem = _usage()
    bars: Sequence[shown.Bar] = ()
    if query["group_by"] == "day" and sums:
        first, last = (datetime.fromtimestamp(int(day.group), UTC).date() for day in (sums[0], sums[-1]))
        if (last - first).days < _MOST_DAYS:
            spent = {int(day.group): day.cost or Decimal(0) for day in sums}
            bars = shown.spend_by_day(spent, first=first, last=last)
    page = render_template(
        "llm_batches/usage.html",
        rows=[(group_name(row, query["group_by"]), row) for row in sums[:_MOST_ROWS]],
        more=max(0, len(sums) - _MOST_ROWS),
        bars=bars,
        query=query,
        problem=problem,
        groups=[name for name in _GROUPS if caller().admin or name != "owner"],
    )
    return page, 200 if problem is None else 422


def usage_file() -> View:
    sums, query, problem = _usage()
    if problem is not None:
        raise problem
    response = Response(usage_csv(sums, query["group_by"]), mimetype="text/csv")
    response.headers.set("Content-Disposition", "attachment", filename="usage.csv")
    return response


def _usage() -> tuple[list[UsageSum], dict[str, str], ValidationFailed | None]:
    """Return the usage of the query, the query with its defaults, and what is wrong with it."""
    month_ago = (datetime.now(UTC).date() - timedelta(days=_DAYS - 1)).isoformat()
    given = {name: request.args.get(name, "").strip() for name in ("since", "until", "group_by")}
    query = {**given, "since": given["since"] or month_ago, "group_by": given["group_by"] or "day"}
    if query["group_by"] not in _GROUPS or (query["group_by"] == "owner" and not caller().admin):
        query["group_by"] = "day"
    try:
        loaded = load(UsageQuerySchema(), {name: value for name, value in query.items() if value})
        return list(current_llm_batches.usage(owner=caller(), **loaded)), query, None
    except ValidationFailed as error:
        return [], query, error


def keys() -> View:
    _admins_only()
    made, problem, status = None, None, 200
    if request.method == "POST":
        if "revoke" in request.form:
            number = request.form.get("revoke", type=int)
            if number is None or not current_llm_batches.keys.revoke(number):
                raise BadRequest("There is no valid key with this id.")
            return redirect(url_for(".keys", done="revoke"), 303)
        try:
            # It is in this answer and nowhere else.
            made = current_llm_batches.keys.create(
                owner=request.form.get("owner", ""), admin="admin" in request.form
            )
        except ValueError:
            problem, status = "An owner has 1 to 255 characters, and no control characters.", 422
    every = current_llm_batches.keys.list()
    page = render_template(
        "llm_batches/keys.html",
        keys=every[: -_MOST_ROWS - 1 : -1],
        more=max(0, len(every) - _MOST_ROWS),
        made=made,
        problem=problem,
    )
    return page, status


def health() -> View:
    _admins_only()
    live = request.method == "POST"  # so that no page of another site makes this app call its providers
    findings = current_llm_batches.checkup(live=live)
    return render_template("llm_batches/health.html", findings=findings, live=live)


def _is_known(state: str) -> bool:
    """Return whether a page that is loaded again shows this already.

    Then there is nothing to swap, so that neither the focus nor a screen reader is disturbed.
    """
    return request.args.get("seen") == state


def _state(*values: object) -> str:
    return hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _which() -> tuple[str, str | None]:
    return request.args.get("id", ""), _arg("provider")


def _arg(name: str) -> str | None:
    return request.args.get(name, "").strip() or None


def _admins_only() -> None:
    if not caller().admin:
        raise Forbidden("Only an admin may see this page.")
