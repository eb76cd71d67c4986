"""The entries of ``LLM_BATCHES_PROVIDERS`` and ``LLM_BATCHES_WEBHOOKS``, and their checks."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from types import MappingProxyType
from typing import Any

from flask_llm_batches.config.errors import wrong, wrong_secret
from flask_llm_batches.errors import ConfigurationError

NAME = r"[A-Za-z0-9_.-]{1,64}"
"""The pattern of the names of handlers and webhooks."""

_LAST_PORT = 65535
_SHORTEST_SECRET = 16  # bytes; Standard Webhooks recommends 24 to 64


def provider_name(name: str) -> str:
    """Return a provider's name as it is recorded. Names are not case-sensitive."""
    # No name has a NUL, and PostgreSQL refuses a query with one.
    return name.strip().lower().replace("\0", "\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One entry of ``LLM_BATCHES_PROVIDERS``.

    Attributes:
        name: How callers address it, in lower case. They may write it in any case.
        kind: any-llm's name for it, if the entry has another name:
            ``{"eu": {"provider": "openai", "api_base": "..."}}``.
        api_key: Its key; None leaves it to any-llm's environment variable.
        api_base: Another address than the provider's own.
        client_args: Further arguments of the provider's client.
        batch_args: Further arguments of every create at the provider, such as OpenAI's
            ``output_expires_after``.
        webhook_secrets: The secret of the provider's webhooks, or a list of two while one replaces the other.
            A signature with any of them is valid.
    """

    name: str
    kind: str
    api_key: str | None = field(default=None, repr=False)
    api_base: str | None = field(default=None, repr=False)
    client_args: Mapping[str, Any] = field(default_factory=dict, repr=False)
    batch_args: Mapping[str, Any] = field(default_factory=dict, repr=False)
    webhook_secrets: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """One entry of ``LLM_BATCHES_WEBHOOKS``.

    Attributes:
        name: How a create names it.
        url: Where it goes.
        secrets: What it is signed with: ``whsec_`` and at least 16 random bytes in base64, or a list of two
            while one replaces the other.
        every: Whether it is sent for every batch, whether or not its create names it.
        http: Whether creates over HTTP may name it.
        allow_private: Whether ``url`` may lead to an address that is not public, and be ``http://``.
    """

    name: str
    url: str = field(repr=False)
    secrets: tuple[bytes, ...] = field(repr=False)
    every: bool = False
    http: bool = False
    allow_private: bool = False


def check_models(key: str, value: object) -> Mapping[str, str]:
    """Check ``LLM_BATCHES_MODELS``.

    Raises:
        ConfigurationError: An entry is wrong; the message names it and the fix.
    """
    if not isinstance(value, Mapping):
        raise wrong(
            key,
            'a dict such as {"gpt-4o-mini": "openai:gpt-4o-mini", "claude-*": "anthropic:claude-*"}',
            value,
        )
    for name, target in value.items():
        if (
            not isinstance(name, str)
            or not re.fullmatch(r"[!-)+-~]{0,255}\*?[!-)+-~]{0,255}", name)
            or not name
        ):
            raise wrong(
                f"A name in {key}", "visible ASCII characters without spaces, with one * at most", name
            )
        if not isinstance(target, str) or not re.fullmatch(r"[^:/*\s]+:[!-~]+", target):
            raise wrong(f"{key}[{name!r}]", '"provider:model"', target)
        if target.count("*") > name.count("*"):
            raise ConfigurationError(f"{key}[{name!r}] has a * in {target!r}: then {name!r} needs one, too")
    return MappingProxyType(dict(value))


def _secrets(key: str, value: object) -> tuple[bytes, ...]:
    texts: Any = [value] if isinstance(value, str) else value
    if isinstance(texts, (list, tuple)) and len(texts) in (1, 2) and all(isinstance(t, str) for t in texts):
        with suppress(ValueError):
            secrets = tuple(b64decode(text.strip().removeprefix("whsec_"), validate=True) for text in texts)
            if all(len(secret) >= _SHORTEST_SECRET for secret in secrets):
                return secrets
    raise wrong_secret(
        key,
        f'a secret of at least {_SHORTEST_SECRET} bytes in base64, such as "whsec_...", '
        "or a list of two while one replaces the other",
        value,
    )


def check_webhooks(key: str, value: object) -> Mapping[str, WebhookSettings]:
    """Check ``LLM_BATCHES_WEBHOOKS``.

    Raises:
        ConfigurationError: An entry is wrong; the message names it and the fix.
    """
    if not isinstance(value, Mapping):
        raise wrong_secret(
            key, 'a dict such as {"crm": {"url": "https://...", "secret": "whsec_..."}}', value
        )
    return MappingProxyType(
        {name: _webhook(f"{key}[{name!r}]", name, entry) for name, entry in value.items()}
    )


def _webhook(key: str, name: object, entry: object) -> WebhookSettings:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise wrong(f"The name of {key}", "1 to 64 letters, digits, dots, dashes and underscores", name)
    if not isinstance(entry, Mapping):
        raise wrong_secret(key, 'a dict such as {"url": "https://...", "secret": "whsec_..."}', entry)
    flags = ("every", "http", "allow_private")
    _check_options(key, entry, ("url", "secret", *flags))
    for flag in flags:
        if not isinstance(entry.get(flag, False), bool):
            raise wrong(f"{key}[{flag!r}]", "True or False", entry[flag])
    url = entry.get("url")
    if not isinstance(url, str) or not _is_url(url, "https?" if entry.get("allow_private") else "https"):
        raise wrong_secret(f"{key}['url']", "the URL of an HTTPS server without user name or password", url)
    return WebhookSettings(
        name,
        url,
        _secrets(f"{key}['secret']", entry.get("secret")),
        **{f: entry.get(f, False) for f in flags},
    )


def _is_url(url: str, schemes: str) -> bool:
    host = r"(\[(?P<ip>[0-9A-Fa-f:.]+)\]|[A-Za-z0-9._-]+)"
    found = re.fullmatch(rf"{schemes}://{host}(:(?P<port>[0-9]{{1,5}}))?([/?][!-~]*)?", url)
    if found is None:
        return False
    with suppress(ValueError):
        IPv6Address(found["ip"] or "::")
        return 0 < int(found["port"] or 443) <= _LAST_PORT
    return False


def _check_options(key: str, entry: Mapping[Any, Any], known: Collection[str], hint: str = "") -> None:
    for option in entry:
        if option not in known:
            raise ConfigurationError(
                f"{key} has the unknown option {option!r}; known are {', '.join(known)}{hint}"
            )


def check_providers(key: str, value: object) -> Mapping[str, ProviderSettings] | None:
    """Check ``LLM_BATCHES_PROVIDERS``.

    Raises:
        ConfigurationError: An entry is wrong; the message names it and the fix.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise wrong_secret(
            key,
            'a dict such as {"openai": {"api_key": "..."}}, or None for every provider any-llm knows',
            value,
        )
    providers = {}
    for name, entry in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise wrong(f"A name in {key}", "1 to 64 letters, digits, dots, dashes and underscores", name)
        if provider_name(name) in providers:
            raise ConfigurationError(f"{key} has {name!r} twice: names that differ only in case are the same")
        providers[provider_name(name)] = _provider(f"{key}[{name!r}]", provider_name(name), entry)
    return MappingProxyType(providers)


_OPTION = "it has an option of its own"
_FIELD = "it is a field of every create"
_TAKEN_ARGUMENTS = {
    "client_args": {
        "api_key": _OPTION,
        "api_base": _OPTION,
        "max_retries": "a call is never repeated, as a repeated create makes two batches",
        "unified_exceptions": "errors are told apart by it",
    },
    "batch_args": dict.fromkeys(
        ("endpoint", "completion_window", "metadata", "model", "input_file_path"), _FIELD
    ),
}


def _provider(key: str, name: str, entry: object) -> ProviderSettings:
    if not isinstance(entry, Mapping):
        raise wrong_secret(key, 'a dict such as {"api_key": "..."}', entry)
    known = ("provider", "api_key", "api_base", "client_args", "batch_args", "webhook_secret")
    _check_options(key, entry, known, hint=" (arguments of the provider's client go into client_args)")
    for option in ("provider", "api_key", "api_base"):
        text = entry.get(option)
        if text is not None and not (isinstance(text, str) and text.strip()):
            raise wrong_secret(f"{key}[{option!r}]", "a string that is not empty, or left out", text)
    arguments = {}
    for option, taken in _TAKEN_ARGUMENTS.items():
        arguments[option] = given = entry.get(option) or {}
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise wrong_secret(f"{key}[{option!r}]", "a dict of keyword arguments", given)
        for argument, why in taken.items():
            if argument in given:
                raise ConfigurationError(f"{key}[{option!r}] must not have {argument!r}: {why}")
    return ProviderSettings(
        name=name,
        kind=str(entry.get("provider") or name).strip().lower(),
        api_key=entry.get("api_key"),
        api_base=entry.get("api_base"),
        client_args=MappingProxyType(dict(arguments["client_args"])),
        batch_args=MappingProxyType(dict(arguments["batch_args"])),
        webhook_secrets=()
        if entry.get("webhook_secret") is None
        else _secrets(f"{key}['webhook_secret']", entry["webhook_secret"]),
    )
