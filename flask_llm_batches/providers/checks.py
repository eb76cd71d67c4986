"""Checks ``LLM_BATCHES_PROVIDERS`` without any_llm, whose import takes two seconds."""

from __future__ import annotations

import os
import re
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from flask_llm_batches.config import ProviderSettings, Settings
from flask_llm_batches.errors import ConfigurationError
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.adapters import adapter_class

logger = get_logger(__name__)


def check_providers(settings: Settings) -> None:
    """Check the entries. What may be intended only causes a warning.

    Raises:
        ConfigurationError: An entry cannot work.
    """
    for entry in (settings.providers or {}).values():
        key = f"LLM_BATCHES_PROVIDERS[{entry.name!r}]"
        _check_kind(key, entry)
        _check_batch_args(key, entry)
        _check_package(key, entry)
        _check_api_key(key, entry)
        _check_api_base(key, entry)


@cache
def _source(kind: str) -> str | None:
    """Return the source of a provider in any-llm; None if there is no such provider."""
    spec = find_spec("any_llm")
    if not (spec and spec.submodule_search_locations):
        return ""
    folder = Path(spec.submodule_search_locations[0], "providers")
    file, registry = folder / kind / f"{kind}.py", folder / "registry.py"
    entries = registry.read_text(encoding="utf-8") if registry.is_file() else ""
    entry = re.search(rf'"{re.escape(kind)}": \w+\(.*?\n    \)', entries, re.DOTALL)
    if entry is None and not (folder / kind).is_dir() and folder.is_dir():
        return None
    return (file.read_text(encoding="utf-8") if file.is_file() else "") + (entry[0] if entry else "")


def _check_kind(key: str, entry: ProviderSettings) -> None:
    if _source(entry.kind) is None:
        raise ConfigurationError(
            f"{key}: any-llm has no provider {entry.kind!r}; "
            'an entry with another name needs the option "provider": {"provider": "openai", ...}'
        )


def _check_batch_args(key: str, entry: ProviderSettings) -> None:
    known = adapter_class(entry.kind).known_args
    for argument in entry.batch_args:
        if known is not None and argument not in known:
            raise ConfigurationError(
                f"{key}['batch_args'] must not have {argument!r}: "
                f"{entry.kind} takes {', '.join(sorted(known))} only"
            )


def _check_package(key: str, entry: ProviderSettings) -> None:
    needed = [name for name, extra in _extras() if extra == entry.kind]
    if needed and not any(map(_is_installed, needed)):
        logger.warning(
            "%s cannot be called: its package is not installed; pip install 'any-llm-sdk[%s]'",
            key,
            entry.kind,
        )


@cache
def _extras() -> list[tuple[str, str]]:
    """Return pairs of a package and the provider for which any-llm needs it."""
    if not _is_installed("any-llm-sdk"):  # it may be importable without package metadata
        return []
    wanted = [
        re.match(r"""([\w.-]+).*\bextra == ['"](\w+)['"]""", text)
        for text in metadata.requires("any-llm-sdk") or ()
    ]
    return [(found[1], found[2]) for found in wanted if found]


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _check_api_key(key: str, entry: ProviderSettings) -> None:
    found = re.search(r'env_api_key_name *= *"([^"]+)"', _source(entry.kind) or "", re.IGNORECASE)
    if found is not None and entry.api_key is None and not any(map(os.environ.get, found[1].split("/"))):
        logger.warning("%s has no key: its api_key is None, and the environment has no %s", key, found[1])


def _check_api_base(key: str, entry: ProviderSettings) -> None:
    has_version = adapter_class(entry.kind).api_base_has_version
    if entry.api_base is None or has_version is None:
        return
    path = urlsplit(entry.api_base).path
    if has_version and "/v1" not in path:
        logger.warning("%s['api_base'] has no /v1, and the provider's client adds none", key)
    elif not has_version and path.rstrip("/").endswith("/v1"):
        logger.warning("%s['api_base'] ends with /v1, which the provider's client adds by itself", key)
