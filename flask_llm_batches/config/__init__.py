"""Every ``LLM_BATCHES_*`` setting, its default and its check."""

from flask_llm_batches.config.entries import NAME, ProviderSettings, WebhookSettings, provider_name
from flask_llm_batches.config.settings import MAX_RETRIES, PREFIX, Settings

__all__ = [
    "MAX_RETRIES",
    "NAME",
    "PREFIX",
    "ProviderSettings",
    "Settings",
    "WebhookSettings",
    "provider_name",
]
