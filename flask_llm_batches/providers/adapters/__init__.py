"""What differs between providers; ``adapter_class`` knows which adapter a provider takes."""

from __future__ import annotations

from flask_llm_batches.providers.adapters.base import Adapter, Page, Row, Submission
from flask_llm_batches.providers.adapters.openai import OpenAIAdapter

__all__ = ["Adapter", "Page", "Row", "Submission", "adapter_class"]


def adapter_class(kind: str) -> type[Adapter]:
    """Give the adapter for one of any-llm's providers; every provider has one."""
    return {"openai": OpenAIAdapter}.get(kind, Adapter)
