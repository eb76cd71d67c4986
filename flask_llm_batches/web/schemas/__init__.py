"""marshmallow schemas of every request, response and error: one file per resource."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from flask import request
from marshmallow import EXCLUDE, Schema, ValidationError

from flask_llm_batches.errors import Problem, ValidationFailed

_LONGEST_NAME = 100  # of a field, in an answer
_MOST_NAMES = 200  # that are looked at: a body may have tens of thousands, each of which takes 0.1 ms


class RequestSchema(Schema):
    """Ignores unknown keys of a body: clients send some that only other gateways know."""

    class Meta:
        unknown = EXCLUDE


def load_query(schema: Schema) -> dict[str, Any]:
    """Return the loaded query of the request.

    Raises:
        ValidationFailed: It does not fit, or has a parameter that is not known here.
    """
    given = request.args.to_dict()
    unknown = [
        Problem((name[:_LONGEST_NAME],), _unknown(name, schema.fields))
        for name in islice(given.keys() - schema.fields.keys(), _MOST_NAMES)
    ]
    if unknown:
        raise ValidationFailed(unknown, in_query=True)
    return load(schema, given, in_query=True)


def check_spelling(names: Iterable[str], known: Collection[str]) -> None:
    """Check that none of the first unknown names in a body is a known name that is misspelt.

    Raises:
        ValidationFailed: A name is at most two letters away from a known one.
    """
    unknown = islice((name for name in names if name not in known), _MOST_NAMES)
    wrong = [name for name in unknown if near(name, known) is not None]
    if wrong:
        raise ValidationFailed(Problem((name,), _unknown(name, known)) for name in wrong)


def _unknown(name: str, known: Collection[str]) -> str:
    meant = near(name, known)
    if meant is not None:
        return f"Unknown field; did you mean {meant}?"
    return f"Unknown field; known are: {', '.join(sorted(known)) or 'none'}."


def near(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is at most two letters away from another name."""
    return next(
        (one for one in known if abs(len(one) - len(name)) <= _TYPOS and _edits(one, name) <= _TYPOS), None
    )


_TYPOS = 2


def _edits(one: str, other: str) -> int:
    """Return how many letters must be inserted, deleted or replaced to turn one word into another."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        left, row[0] = row[0], i
        for j, its in enumerate(other, 1):
            left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, left + (letter != its))
    return row[-1]


def load(schema: Schema, data: Mapping[str, Any], *, in_query: bool = False) -> dict[str, Any]:
    """Check data against a schema, and return what it loads.

    Args:
        schema: The schema.
        data: The data.
        in_query: Whether they are the query of a URL.

    Raises:
        ValidationFailed: The data does not fit.
    """
    try:
        loaded: dict[str, Any] = schema.load(data)
    except ValidationError as error:
        problems = _problems(error.normalized_messages())  # type: ignore[no-untyped-call]
        raise ValidationFailed(problems, in_query=in_query) from None
    return loaded


def _problems(messages: Any, path: tuple[Any, ...] = ()) -> Iterator[Problem]:
    """Yield each of marshmallow's nested messages with the path to its field."""
    if isinstance(messages, Mapping):
        for key, inner in messages.items():
            # The caller used none of these names: "_schema" stands for all of the data, and marshmallow adds
            # "key" or "value" to the errors of a dict.
            unnamed = key == "_schema" or (
                key in ("key", "value") and path[:1] == ("metadata",) and len(path) > 1
            )
            yield from _problems(inner, path if unnamed else (*path, key))
        return
    for text in messages if isinstance(messages, list) else [messages]:
        yield Problem(path, str(text))
