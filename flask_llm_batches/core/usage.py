"""Result rows into tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flask_llm_batches.store.records import Tokens


def count_tokens(rows: Iterable[dict[str, Any]]) -> Tokens:
    """Sum up the usage that rows state; a failed one states none.

    Chat completions call them ``prompt_tokens`` and ``completion_tokens``, responses ``input_tokens`` and
    ``output_tokens``, embeddings have no completion.
    """
    prompt = completion = cached = total = 0
    for row in rows:
        usage = (row["result"] or {}).get("usage")
        if not isinstance(usage, dict):
            continue
        into = _number(usage, "prompt_tokens", "input_tokens")
        out = _number(usage, "completion_tokens", "output_tokens")
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        prompt += into
        completion += out
        cached += _number(details, "cached_tokens") if isinstance(details, dict) else 0
        total += _number(usage, "total_tokens") or into + out
    return Tokens(prompt, completion, cached, total)


def _number(usage: dict[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(value := usage.get(name), int):
            return value
    return 0
