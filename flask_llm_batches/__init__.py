"""Batch endpoints for large language models, inside the Flask app you already have.

The public names are those in ``__all__`` here, and in ``flask_llm_batches.errors``,
``flask_llm_batches.signals`` and ``flask_llm_batches.testing``. Other names may change in any version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flask_llm_batches.batch import Batch, Row, RowError
    from flask_llm_batches.core.asked import Checked
    from flask_llm_batches.core.checkup import Finding
    from flask_llm_batches.core.detail import Detail, Part
    from flask_llm_batches.core.files import FileContent, FilePage, Upload
    from flask_llm_batches.core.inspected import Exchange, Failures, Inspected, Overview
    from flask_llm_batches.core.limits import Limits
    from flask_llm_batches.core.reconcile import Settled
    from flask_llm_batches.core.results import Results
    from flask_llm_batches.core.service import Service
    from flask_llm_batches.current import current_llm_batches
    from flask_llm_batches.delivery import DeliveredRow, InvalidOutput
    from flask_llm_batches.errors import ConfigurationError, LLMBatchesError, Problem
    from flask_llm_batches.extension import LLMBatches
    from flask_llm_batches.principal import EVERYONE, Owner, Principal
    from flask_llm_batches.providers.adapters import Page
    from flask_llm_batches.store.models import File
    from flask_llm_batches.store.usage import UsageSum

__all__ = [
    "EVERYONE",
    "Batch",
    "Checked",
    "ConfigurationError",
    "DeliveredRow",
    "Detail",
    "Exchange",
    "Failures",
    "File",
    "FileContent",
    "FilePage",
    "Finding",
    "Inspected",
    "InvalidOutput",
    "LLMBatches",
    "LLMBatchesError",
    "Limits",
    "Overview",
    "Owner",
    "Page",
    "Part",
    "Principal",
    "Problem",
    "Results",
    "Row",
    "RowError",
    "Service",
    "Settled",
    "Upload",
    "UsageSum",
    "current_llm_batches",
]

_HOMES = {
    "batch": {"Batch", "Row", "RowError"},
    "core.asked": {"Checked"},
    "core.checkup": {"Finding"},
    "core.detail": {"Detail", "Part"},
    "core.files": {"FileContent", "FilePage", "Upload"},
    "core.inspected": {"Exchange", "Failures", "Inspected", "Overview"},
    "core.limits": {"Limits"},
    "core.reconcile": {"Settled"},
    "core.results": {"Results"},
    "core.service": {"Service"},
    "current": {"current_llm_batches"},
    "delivery": {"DeliveredRow", "InvalidOutput"},
    "errors": {"ConfigurationError", "LLMBatchesError", "Problem"},
    "extension": {"LLMBatches"},
    "principal": {"EVERYONE", "Owner", "Principal"},
    "providers.adapters": {"Page"},
    "store.models": {"File"},
    "store.usage": {"UsageSum"},
}


def __getattr__(name: str) -> Any:
    # Imported late: pytest imports this package in every run, because it has a plugin.
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
