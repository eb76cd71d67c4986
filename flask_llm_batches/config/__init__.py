"""Every ``LLM_BATCHES_*`` setting, its default and its check."""

from flask_llm_batches.config.entries import NAME, ProviderSettings, WebhookSettings, provider_name
from flask_llm_batches.config.settings import PREFIX, Settings

__all__ = ["NAME", "PREFIX", "ProviderSettings", "Settings", "WebhookSettings", "provider_name"]
