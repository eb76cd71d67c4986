"""Bytes become lines, however they come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flask_llm_batches.jsonl import split_lines
from tests.json_texts import cut


@given(
    st.lists(st.sampled_from([b"", b"a", b"\r", b"\xe2\x80", b"\xa8", b"\x85", b"\x0c"])).map(b"".join)
    | st.lists(st.binary(max_size=4)).map(b"\n".join),
    st.lists(st.integers(0, 1000)),
)
def test_lines_are_the_same_however_they_are_cut(data: bytes, places: list[int]) -> None:
    """Only a line feed ends a line, and chunks may end anywhere."""
    assert list(split_lines(cut(data, places))) == data.split(b"\n")
