"""What differs between providers. ``adapter_class`` returns the adapter of a provider."""

from __future__ import annotations

from flask_llm_batches.providers.adapters import refused
from flask_llm_batches.providers.adapters.anthropic import AnthropicAdapter
from flask_llm_batches.providers.adapters.base import Adapter, Page, Submission, Unsuitable
from flask_llm_batches.providers.adapters.gemini import GeminiAdapter
from flask_llm_batches.providers.adapters.mistral import MistralAdapter
from flask_llm_batches.providers.adapters.openai import OpenAIAdapter

__all__ = ["Adapter", "Page", "Submission", "Unsuitable", "adapter_class"]


class _NeosantaraAdapter(OpenAIAdapter):
    """Neosantara: OpenAI's protocol and SDK, with unknown limits."""

    max_requests = None
    max_bytes = None


_ADAPTERS: dict[str, type[Adapter]] = {
    "anthropic": AnthropicAdapter,
    "azureanthropic": refused.AzureAnthropicAdapter,
    "bedrock": refused.BedrockAdapter,
    "gemini": GeminiAdapter,
    "mistral": MistralAdapter,
    "neosantara": _NeosantaraAdapter,
    "openai": OpenAIAdapter,
    "otari": refused.OtariAdapter,
    "vertexai": refused.VertexAIAdapter,
    "vertexaianthropic": refused.VertexAIAnthropicAdapter,
}


def adapter_class(kind: str) -> type[Adapter]:
    """Return the adapter class of one of any-llm's providers. Every provider has one."""
    return _ADAPTERS.get(kind, Adapter)
