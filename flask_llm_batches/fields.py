"""Reads the fields of a provider's batch object one by one. A wrong value is ignored."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

# No id of a provider has control characters, lone surrogates, "?", "#", "%", or empty and dot segments.
_ID = re.compile(r"(?!.*(?:^|/)\.{0,2}(?:/|$))[^\x00-\x1f\x7f-\x9f\ud800-\udfff?#%]{1,512}")


def is_id(value: object) -> bool:
    """Return whether a value can be the id of a provider's batch or file."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


_LATEST = 253_402_300_800  # the year 10,000, which libraries for dates do not support
_MOST = 1 << 53  # every JSON parser reads smaller integers exactly
_PROBLEMS = 100
_HALF = re.compile("[\ud800-\udfff]")


def read_time(value: object) -> int | None:
    """Return Unix seconds as a whole number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < _LATEST else None  # type: ignore[operator, call-overload]


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < _MOST else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 512 else None


def _id(value: object) -> str | None:
    return str(value) if is_id(value) else None


def is_whole(text: object) -> bool:
    """Return whether a value is text without lone surrogates, which neither databases nor providers take."""
    return isinstance(text, str) and _HALF.search(text) is None


def _counts(value: object) -> dict[str, int] | None:
    if not isinstance(value, dict):
        return None
    return {name: _count(value.get(name)) or 0 for name in ("total", "completed", "failed")}


def _metadata(value: object) -> dict[str, str] | None:
    if not isinstance(value, dict):
        return None
    return {key: text for key, text in value.items() if is_whole(key) and is_whole(text)} or None


def _errors(value: object) -> dict[str, Any] | None:
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, list):
        return None
    problems = [problem for problem in data[:_PROBLEMS] if isinstance(problem, dict)]
    return {"object": "list", "data": [_problem(problem) for problem in problems]}


def _problem(problem: Mapping[str, Any]) -> dict[str, Any]:
    message = problem.get("message")
    return {
        "code": _text(problem.get("code")),
        "line": _count(problem.get("line")),
        "message": message if is_whole(message) else "The provider gave no reason",
        "param": _text(problem.get("param")),
    }


def _usage(value: object, depth: int = 2) -> dict[str, Any] | None:
    """Return the counts: ``{"input_tokens": 3, "input_tokens_details": {"cached_tokens": 1}}``."""
    if not (isinstance(value, dict) and depth):
        return None
    read = {name: _usage(one, depth - 1) or _count(one) for name, one in value.items() if is_whole(name)}
    return {name: one for name, one in read.items() if one is not None}


READ: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("endpoint", "model", "completion_window"), _text),
    **dict.fromkeys(("input_file_id", "output_file_id", "error_file_id"), _id),
    **dict.fromkeys(
        (
            "in_progress_at",
            "expires_at",
            "finalizing_at",
            "completed_at",
            "failed_at",
            "expired_at",
            "cancelling_at",
            "cancelled_at",
        ),
        read_time,
    ),
    "errors": _errors,
    "request_counts": _counts,
    "metadata": _metadata,
    "usage": _usage,
}
"""How each field is read, except ``id``, ``status`` and ``created_at``. None means a missing field."""
