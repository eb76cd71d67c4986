"""Figures and the table of them, and how much memory a process takes. Linux only."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = "{:36}{:>12}{:>12}   {:36}{:20}{}"
COMPARE = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Figure:
    """What was measured, in all rounds.

    Attributes:
        name: Of what.
        unit: In what.
        ours: The figures of ours; none if it is not there.
        naive: Those of the naive one, if it was measured.
        beside: What the ratio is to, and its name; the naive one's unless given.
        bar: What the median of the ratio must be, ``<= 0.25 x``, or of the figure, ``<= 100 ms``.
    """

    name: str
    unit: str
    ours: Sequence[float] = ()
    naive: Sequence[float] = ()
    beside: tuple[str, float] | None = None
    bar: str = ""

    def line(self) -> str:
        if not self.ours:
            return COLUMNS.format(self.name, "", "not there", "", self.bar, "").rstrip()
        to, base = self.beside or ("naive", statistics.median(self.naive) if self.naive else 0.0)
        ratios = [figure / base for figure in self.ours] if base else []
        ratio = _ratio(ratios, to) if ratios else ""
        beaten = self._beaten(ratios) if self.bar else ""
        return COLUMNS.format(
            self.name, self._median(self.naive), self._median(self.ours), ratio, self.bar, beaten
        ).rstrip()

    def _median(self, figures: Sequence[float]) -> str:
        return f"{_short(statistics.median(figures))} {self.unit}" if figures else ""

    def _beaten(self, ratios: Sequence[float]) -> str:
        how, limit, unit, *_ = self.bar.split()
        measured = statistics.median(ratios if unit == "x" else self.ours)
        return "yes" if COMPARE[how](measured, float(limit)) else "NO"


def _ratio(ratios: Sequence[float], to: str) -> str:
    middle, least, most = (_short(figure) for figure in (statistics.median(ratios), min(ratios), max(ratios)))
    return f"{middle} x {to} ({least} to {most})"


def _short(figure: float) -> str:
    return f"{figure:.0f}" if figure >= 10 else f"{figure:.2g}"


def heading() -> str:
    return COLUMNS.format("", "naive", "ours", "ratio", "bar", "beaten")


class Memory:
    """The resident memory of a process, in MB."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        self._start = self._before = self._status("VmRSS")

    def reset(self) -> None:
        """Begin a call: forget how much it was before now."""
        (self._proc / "clear_refs").write_text("5")
        self._before = self._status("VmRSS")

    def peak(self) -> float:
        """Return the most that it had since the last reset, over what it had then."""
        return max(self._status("VmHWM") - self._before, 0)

    def kept(self) -> float:
        """Return what it has now over what it had at first.

        A call that reuses what an earlier one left behind has a low peak: here it shows.
        """
        return self._status("VmRSS") - self._start

    def _status(self, name: str) -> float:
        text = (self._proc / "status").read_text()
        return int(text.partition(f"{name}:")[2].split()[0]) * 1024 / 1e6
