"""Batch endpoints for large language models, inside the Flask app you already have.

The public names are those in ``__all__`` here, and in ``flask_llm_batches.errors``,
``flask_llm_batches.signals`` and ``flask_llm_batches.testing``. Other names may change in any version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flask_llm_batches.batch import Batch, Row, RowError
    from flask_llm_batches.core.create import Checked
    from flask_llm_batches.core.reconcile import Settled
    from flask_llm_batches.core.results import Results
    from flask_llm_batches.core.service import Service
    from flask_llm_batches.current import current_llm_batches
    from flask_llm_batches.delivery import DeliveredRow, InvalidOutput
    from flask_llm_batches.errors import ConfigurationError, LLMBatchesError, Problem
    from flask_llm_batches.extension import LLMBatches
    from flask_llm_batches.principal import EVERYONE, Owner, Principal
    from flask_llm_batches.providers.adapters import Page
    from flask_llm_batches.store.usage import UsageSum

__all__ = [
    "EVERYONE",
    "Batch",
    "Checked",
    "ConfigurationError",
    "DeliveredRow",
    "InvalidOutput",
    "LLMBatches",
    "LLMBatchesError",
    "Owner",
    "Page",
    "Principal",
    "Problem",
    "Results",
    "Row",
    "RowError",
    "Service",
    "Settled",
    "UsageSum",
    "current_llm_batches",
]

_HOMES = {
    "batch": {"Batch", "Row", "RowError"},
    "core.create": {"Checked"},
    "core.reconcile": {"Settled"},
    "core.results": {"Results"},
    "core.service": {"Service"},
    "current": {"current_llm_batches"},
    "delivery": {"DeliveredRow", "InvalidOutput"},
    "errors": {"ConfigurationError", "LLMBatchesError", "Problem"},
    "extension": {"LLMBatches"},
    "principal": {"EVERYONE", "Owner", "Principal"},
    "providers.adapters": {"Page"},
    "store.usage": {"UsageSum"},
}


def __getattr__(name: str) -> Any:
    # Late: every pytest run in this environment imports the package, for the plugin in it.
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
