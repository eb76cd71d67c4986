"""The errors of settings."""

from __future__ import annotations

from flask_llm_batches.errors import ConfigurationError


def wrong(key: str, fix: str, value: object) -> ConfigurationError:
    """Return the error for a value."""
    return ConfigurationError(f"{key} must be {fix}, not {value!r}")


def wrong_secret(key: str, fix: str, value: object) -> ConfigurationError:
    """Return the error for a value that no log may have in it."""
    kind = "an empty string" if value == "" else type(value).__name__
    return ConfigurationError(f"{key} must be {fix}, not {kind}")
