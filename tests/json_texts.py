"""JSON as text, with everything that parsing and dumping would lose."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = (
    "123456789012345678901234567890",
    "0.1000000000000000055511151231257827",
    "1e400",
    "-1E-400",
    "-0",
    "-0.0",
    "1.50",
)
STRINGS = ('"\u2028\u2029\u0085"', r'"\u2028\n\r\u0000\/"', '"\\ud83d\\ude00😀"', '"\x7f\ufeff"', r'"\\\""')


def strings() -> st.SearchStrategy[str]:
    """Return strings as JSON, escaped in one way or another."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    return st.sampled_from(STRINGS) | st.builds(
        lambda value, ascii_only: json.dumps(value, ensure_ascii=ascii_only), text, st.booleans()
    )


def values(white_space: str) -> st.SearchStrategy[str]:
    """Return JSON of any kind, with such white space between its parts."""
    space = st.text(white_space, max_size=2)
    scalars = st.sampled_from([*NUMBERS, "true", "false", "null"]) | st.integers().map(str) | strings()
    return st.recursive(
        scalars,
        lambda inner: st.builds(_array, st.lists(inner, max_size=3), space) | objects(inner, space),
        max_leaves=6,
    )


def objects(inner: st.SearchStrategy[str], space: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return JSON objects, some with a key twice."""
    keys = st.sampled_from(['"a"', '"\u2028"', r'"\u0061"']) | strings()
    return st.builds(_object, st.lists(st.tuples(keys, inner), max_size=3), space)


def bodies(white_space: str) -> st.SearchStrategy[str]:
    """Return JSON objects of anything."""
    return objects(values(white_space), st.text(white_space, max_size=2))


def digits_kept(text: str | bytes) -> Any:
    """Parse JSON, with numbers as they are written and every pair of an object."""
    return json.loads(text, parse_int=_Number, parse_float=_Number, object_pairs_hook=list)


class _Number(str):
    __slots__ = ()


def _array(values: list[str], space: str) -> str:
    return f"[{space}{f'{space},'.join(values)}{space}]"


def _object(pairs: list[tuple[str, str]], space: str) -> str:
    return (
        "{" + space + f",{space}".join(f"{key}{space}:{space}{value}" for key, value in pairs) + space + "}"
    )


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes into pieces of these lengths, which are used again and again."""
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]
