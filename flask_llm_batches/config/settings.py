"""The settings of an app, read once."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from urllib.request import url2pathname

from flask_llm_batches.config.entries import (
    ProviderSettings,
    WebhookSettings,
    check_models,
    check_providers,
    check_webhooks,
    provider_name,
)
from flask_llm_batches.config.errors import wrong, wrong_secret
from flask_llm_batches.errors import ConfigurationError

PREFIX = "LLM_BATCHES_"

MAX_RETRIES = 5
"""How often failed requests may be submitted again."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one app, read once.

    Attributes:
        providers: The providers that may be addressed, by name: ``{"openai": {"api_key": "..."}}``. None
            stands for all providers of any-llm, with the keys in its environment variables.
        url_prefix: Where the endpoints are: one path or several. ``["/v1/batches", "/api/v1/batches"]`` also
            serves otari 0.4.
        master_key: A key whose bearer is an admin.
        max_requests: The most requests of one batch.
        max_content_length: The most bytes of the body of a create. It replaces the app's own limit.
        timeout: Seconds for a call that retrieves, cancels or lists batches.
        transfer_timeout: Seconds for a create, and for a pause of the provider during a download.
        bind_key: The bind of the host's database that keeps the record.
        search_window: Seconds after which a batch whose create got no answer is ``failed``, if its provider
            does not list it.
        untracked: ``"allow"`` lets all callers see batches that were not made here, or whose record was
            purged, if they know the id.
        spool_dir: The folder for the requests of a create, which are deleted when it ends; None for the
            system's folder for temporary files.
        worker: ``"thread"`` runs a worker inside each web process.
        storage: Where large data is kept: ``"database"``, or the URL of a folder or an object store.
        retention: Days for which results and files are kept. 0 keeps results only as long as they are needed,
            and no files.
        webhooks: The URLs to call when a batch has ended, by name: ``{"crm": {"url": "https://...",
            "secret": "whsec_..."}}``.
        models: ``provider:model`` for the names of models that callers use, and for patterns with one ``*``:
            ``{"gpt-4o-mini": "anthropic:claude-haiku-4-5", "claude-*": "anthropic:claude-*"}``.
        retries: How often requests that failed for a temporary reason are submitted again, 0 to 5. A create
            may set its own number.
        files_url_prefix: Where the files of OpenAI's API are; None for nowhere. ``"beside"`` is a path next
            to each prefix of the batches: ``/v1/files`` for ``/v1/batches``, and none for ``/batches``. The
            models are next to the files.
    """

    providers: Mapping[str, ProviderSettings] | None = field(default=None, repr=False)
    url_prefix: tuple[str, ...] = ("/v1/batches",)
    master_key: str | None = field(default=None, repr=False)
    max_requests: int = 1_000_000
    max_content_length: int = 256 * 1024 * 1024
    timeout: float = 60.0
    transfer_timeout: float = 600.0
    bind_key: str | None = None
    search_window: float = 3600.0
    untracked: Literal["deny", "allow"] = "deny"
    spool_dir: str | None = None
    worker: Literal["thread"] | None = None
    storage: str = "database"
    retention: int = 30
    webhooks: Mapping[str, WebhookSettings] = field(default_factory=dict, repr=False)
    models: Mapping[str, str] = field(default_factory=dict)
    retries: int = 0
    files_url_prefix: str | None = "beside"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Read the settings of an app.

        Raises:
            ConfigurationError: A key is unknown or a value is wrong; the message names both and the fix.
        """
        names = {PREFIX + f.name.upper(): f.name for f in fields(cls)}
        given = {key: value for key, value in config.items() if key.startswith(PREFIX)}
        for key in given.keys() - names.keys():
            near = difflib.get_close_matches(
                key.removeprefix(PREFIX), [name.upper() for name in names.values()], n=1
            )
            hint = f"did you mean {PREFIX}{near[0]}?" if near else f"known are {', '.join(sorted(names))}"
            raise ConfigurationError(f"{key} is no setting of flask-llm-batches; {hint}")
        checked: dict[str, Any] = {
            names[key]: _CHECKS[names[key]](key, value) for key, value in given.items()
        }
        settings = cls(**checked)
        if settings.files_url_prefix in settings.url_prefix:
            raise ConfigurationError(
                f"{PREFIX}FILES_URL_PREFIX must be another path than those of {PREFIX}URL_PREFIX, "
                f"not {settings.files_url_prefix!r}"
            )
        for name, target in settings.models.items():
            provider = provider_name(target.partition(":")[0])
            if settings.providers is not None and provider not in settings.providers:
                raise ConfigurationError(
                    f"{PREFIX}MODELS[{name!r}] is {target!r}, but {PREFIX}PROVIDERS has no {provider!r}"
                )
        return settings


def _positive_int(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise wrong(key, "a whole number from 1 up", value)
    return value


def _retries(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_RETRIES:
        raise wrong(key, f"a whole number from 0 to {MAX_RETRIES}", value)
    return value


def _seconds(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise wrong(key, "a number of seconds above 0", value)
    return float(value)


def _url_prefix(key: str, value: object) -> tuple[str, ...]:
    prefixes: Any = [value] if isinstance(value, str) else value
    if (
        not (isinstance(prefixes, (list, tuple)) and prefixes)
        or not all(isinstance(one, str) and re.fullmatch(r"(/[^/<>\s]+)+", one) for one in prefixes)
        or len(set(prefixes)) < len(prefixes)
    ):
        raise wrong(
            key,
            'a path that begins with a slash and does not end with one, such as "/v1/batches", '
            "or a list of different ones",
            value,
        )
    return tuple(prefixes)


def _files_url_prefix(key: str, value: object) -> str | None:
    if value in (None, "beside"):
        return None if value is None else "beside"
    if not isinstance(value, str) or not re.fullmatch(r"(/[^/<>\s]+)+", value):
        raise wrong(key, 'a path such as "/v1/files", "beside" for one beside the batches, or None', value)
    return value


def _master_key(key: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise wrong_secret(
            key, "a string of visible ASCII characters without spaces, or None for no such key", value
        )
    return value


def _bind_key(key: str, value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and value):
        raise wrong(key, "a key of SQLALCHEMY_BINDS, or None for the default database", value)
    return value


def _untracked(key: str, value: object) -> str:
    if value not in ("deny", "allow"):
        raise wrong(key, '"deny" or "allow"', value)
    return str(value)


def _worker(key: str, value: object) -> str | None:
    if value not in (None, "thread"):
        raise wrong(key, '"thread" for a worker in each web process, or None', value)
    return "thread" if value else None


def _spool_dir(key: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, Path)) or value == "" or not Path(value).is_dir():
        raise wrong(key, "an existing folder, or None for the system's folder for temporary files", value)
    return str(value)


def _storage(key: str, value: object) -> str:
    if value == "database":
        return "database"
    if isinstance(value, str) and re.fullmatch("file:///.*", value):
        if not Path(url2pathname(value.removeprefix("file://"))).is_dir():
            raise wrong(key, "the URL of an existing folder", value)
        return value
    if not isinstance(value, str) or not re.fullmatch(r"(s3|gs|az)://[^/?#@\s]+(/[^?#\s]*)?", value):
        raise wrong_secret(
            key,
            '"database", the URL of a folder such as "file:///srv/batches", or of an object store: '
            '"s3://bucket/path", "gs://..." or "az://...", whose keys are in the environment',
            value,
        )
    return value


def _days(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise wrong(key, "a whole number of days, from 0 up", value)
    return value


_CHECKS = {
    "providers": check_providers,
    "url_prefix": _url_prefix,
    "master_key": _master_key,
    "max_requests": _positive_int,
    "max_content_length": _positive_int,
    "timeout": _seconds,
    "transfer_timeout": _seconds,
    "bind_key": _bind_key,
    "search_window": _seconds,
    "untracked": _untracked,
    "spool_dir": _spool_dir,
    "worker": _worker,
    "storage": _storage,
    "retention": _days,
    "webhooks": check_webhooks,
    "models": check_models,
    "retries": _retries,
    "files_url_prefix": _files_url_prefix,
}
