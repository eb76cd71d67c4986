"""Makes the calls of a provider fail at random, in many ways, until it is stopped."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from werkzeug.wrappers import Response

from flask_llm_batches.testing import Call, Simulator

SHARE = 0.15
"""How many of the calls go wrong."""


class Chaos:
    """Makes calls of the simulator's OpenAI fail.

    Attributes:
        counts: How often each fault happened.
    """

    def __init__(self, simulator: Simulator, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._simulator = simulator
        self._random = random.Random(seed)

    def start(self) -> None:
        self._simulator.rewrite = self._rewrite

    def stop(self) -> None:
        self._simulator.rewrite = None
        self._simulator._faults.clear()  # the one that ``_interrupt`` left for a call that never came

    def _rewrite(self, call: Call, answer: Response) -> Response:
        if answer.status_code != 200 or self._random.random() > SHARE:
            return answer
        faults = _faults_of(call)
        if not faults:
            return answer
        name = self._random.choice(sorted(faults))
        self.counts[name] += 1
        if name in ("dropped", "silent", "dropped before"):
            return self._interrupt(name, call)
        faults[name](answer)
        return answer

    def _interrupt(self, name: str, call: Call) -> Response:
        """Answer this call with an error, and break the next one of its kind in another way."""
        on = f"{call.method} {call.path}"
        if name == "silent":
            self._simulator.delay_next(6, on=on, after=0)
        else:
            self._simulator.drop_next(on=on, after=0 if name == "dropped" else None)
        return Response("<html>Bad Gateway</html>", 502)


def _status(status: int) -> Callable[[Response], None]:
    def change(answer: Response) -> None:
        answer.status_code = status
        answer.data = msgspec.json.encode({"error": {"message": "Something is wrong", "code": "wrong"}})

    return change


def _json(change: Callable[[Any], None]) -> Callable[[Response], None]:
    def rewrite(answer: Response) -> None:
        value = answer.get_json()
        change(value)
        answer.data = msgspec.json.encode(value)

    return rewrite


def _odd(batch: dict[str, Any]) -> None:
    batch |= {"expires_at": "soon", "request_counts": "many", "errors": [1], "model": 7}


def _too_early(batch: dict[str, Any]) -> None:
    counts = {"total": 2, "completed": 2, "failed": 0}
    batch |= {"status": "completed", "output_file_id": None, "error_file_id": None, "request_counts": counts}


def _lag(page: dict[str, Any]) -> None:
    page["data"] = page["data"][3:]


def _without_more(page: dict[str, Any]) -> None:
    page.pop("has_more", None)


def _cut(answer: Response) -> None:
    answer.data = b"".join(answer.data.splitlines(keepends=True)[:1])


def _damage(answer: Response) -> None:
    answer.data = answer.data.replace(b'"custom_id"', b'"custom_id', 1)


def _nothing(_answer: Response) -> None:
    """Broken in another way."""


_DONE: dict[str, Callable[[Response], None]] = {
    "500, and done": _status(500),
    "408, and done": _status(408),
    "409, and done": _status(409),
    "dropped": _nothing,
    "silent": _nothing,
    "dropped before": _nothing,
}


def _faults_of(call: Call) -> dict[str, Callable[[Response], None]]:
    if call.method == "POST" and call.path == "/batches":
        return _DONE | {"odd": _json(_odd)}
    if call.method == "GET" and call.path == "/batches":
        return {"lagging": _json(_lag), "no has_more": _json(_without_more)}
    if call.method == "GET" and call.path.startswith("/batches/"):
        return {"404": _status(404), "too early": _json(_too_early), "odd": _json(_odd), "429": _status(429)}
    if call.path.endswith("/content"):
        return {"cut": _cut, "damaged": _damage}
    return {}
