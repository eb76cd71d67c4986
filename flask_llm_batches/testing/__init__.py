"""A simulated provider on loopback, for the package's tests and for yours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flask_llm_batches.testing.simulator import Call, SimulatedBatch, Simulator, echo

__all__ = ["Call", "SimulatedBatch", "Simulator", "echo"]


def __getattr__(name: str) -> Any:
    # Imported late: every pytest run in this environment imports this package, with the plugin.
    if name in __all__:
        from flask_llm_batches.testing import simulator

        return getattr(simulator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
