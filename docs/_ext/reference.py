"""Writes the reference from the code: the settings, the endpoints and the errors, as Markdown.

A comment in a page, such as ``<!-- generated: settings -->``, is replaced by the text.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, cast

from flask_llm_batches import errors
from flask_llm_batches.config import Settings
from flask_llm_batches.config.entries import ProviderSettings, WebhookSettings
from flask_llm_batches.config.settings import PREFIX
from flask_llm_batches.providers.adapters import adapter_class
from flask_llm_batches.web.errors import HTTP_CODES
from flask_llm_batches.web.openapi import document

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_OPTIONS = {"kind": "provider", "webhook_secrets": "webhook_secret", "secrets": "secret"}
"""The options whose fields have another name."""

_NOT_ANSWERED = {errors.LLMBatchesError, errors.HTTPError, errors.AdoptionRefused}
"""The base class, the errors of Flask, which have codes of their own, and one that only commands raise."""

_PLACE = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)

_MIB = 1024 * 1024


def settings() -> str:
    """Return the settings, and the options of the entries of two of them."""
    told = _attributes(Settings)
    rows = [
        (f"`{PREFIX}{field.name.upper()}`", _default(field), told[field.name]) for field in fields(Settings)
    ]
    texts = [_table(("setting", "default", ""), rows)]
    for cls, setting in ((ProviderSettings, "PROVIDERS"), (WebhookSettings, "WEBHOOKS")):
        told = _attributes(cls)
        options = [
            (f"`{_OPTIONS.get(field.name, field.name)}`", _default(field), told[field.name])
            for field in fields(cls)
            if field.name != "name"
        ]
        texts.append(f"## An entry of {PREFIX}{setting}\n\n" + _table(("option", "default", ""), options))
    return "\n".join(texts)


def providers() -> str:
    """Return what the providers take at once, and what they keep."""
    rows = []
    for kind in ("openai", "anthropic", "mistral", "gemini", "together"):
        adapter = adapter_class(kind)
        requests = "" if adapter.max_requests is None else f"{adapter.max_requests:,}"
        size = "" if adapter.max_bytes is None else f"{adapter.max_bytes // _MIB} MiB"
        rows.append((f"`{kind}`", requests, size, "yes" if adapter.keeps_metadata else "no"))
    return _table(("provider", "requests of a part", "bytes of a part", "keeps metadata"), rows)


def error_codes() -> str:
    """Return the errors by status, each with the headers that its answers may have."""
    known: dict[tuple[int, str], list[str]] = {key: [] for key in HTTP_CODES.items()}
    for cls in vars(errors).values():
        if inspect.isclass(cls) and issubclass(cls, errors.LLMBatchesError) and cls not in _NOT_ANSWERED:
            known.setdefault((cls.status, cls.code), []).append(_summary(cls))
    headers = _headers()
    rows = [
        (str(status), f"`{code}`", " ".join(told) or "Raised by Flask, or by the app.", headers[str(status)])
        for (status, code), told in sorted(known.items())
    ]
    return _table(("status", "code", "", "headers"), rows)


def endpoints() -> str:
    """Return the endpoints and the schemas of the OpenAPI document."""
    texts: list[str] = []
    group = None
    for title, operation in _operations():
        if operation["tags"] != group:
            group = operation["tags"]
            texts.append(f"## {group[0]}\n")
        texts += _described_operation(title, operation)
    texts.append("## Schemas\n")
    for name, schema in sorted(_api()["components"]["schemas"].items()):
        texts += [f"### {name}\n", *_described(schema), *_properties(schema)]
    return "\n".join(texts)


def _api() -> dict[str, Any]:
    return document("/v1/batches", "/v1/files")


def _operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in _api()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def _described_operation(title: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {title}\n"
    yield f"{operation['summary']}.\n"
    yield from _described(operation)
    if "parameters" in operation:
        rows = [
            (f"`{one['name']}`", one["in"], _type(one["schema"]), _about(one | one["schema"], one))
            for one in operation["parameters"]
        ]
        yield _table(("parameter", "in", "type", ""), rows)
    if "requestBody" in operation:
        body = operation["requestBody"]
        yield f"The body: {_contents(body)}. {body.get('description', '')}\n"
        for content in body["content"].values():
            yield from _properties(content["schema"])
    wrong = []
    for status, response in sorted(operation["responses"].items()):
        if status < "300":
            yield f"{status}: {_contents(response) or response['description']}.\n"
        else:
            wrong.append(status)
    yield f"[Errors](#errors): {', '.join(wrong)}.\n"


def _headers() -> dict[str, str]:
    """Return the headers of the answers with an error, by status."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for _, operation in _operations():
        for status, response in operation["responses"].items():
            for name, header in response.get("headers", {}).items():
                found[status][name] = f"`{name}`: {header['description']}."
    return defaultdict(str, {status: " ".join(texts.values()) for status, texts in found.items()})


def _contents(described: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{_type(content['schema'])} (`{kind}`)" for kind, content in described.get("content", {}).items()
    )


def _properties(schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    rows = []
    for name, field in schema.get("properties", {}).items():
        rows.append((f"`{name}`", _type(field), _about(field, {"required": name in required})))
    if rows:
        yield _table(("field", "type", ""), rows)


def _described(schema: Mapping[str, Any]) -> Iterator[str]:
    if text := schema.get("description"):
        yield f"{text}\n"


def _about(field: Mapping[str, Any], use: Mapping[str, Any]) -> str:
    texts = [str(field.get("description", ""))]
    if "enum" in field:
        texts.append("One of " + ", ".join(f"`{one}`" for one in field["enum"] if one is not None) + ".")
    texts += _bounds(field)
    if field.get("default") not in (None, False):
        texts.append(f"By default `{field['default']}`.")
    if use.get("required"):
        texts.append("Required.")
    return " ".join(text for text in texts if text)


def _bounds(field: Mapping[str, Any]) -> Iterator[str]:
    for least, most, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("", "maxProperties", " pairs"),
    ):
        if most in field:
            yield f"{f'{field[least]:,} to ' if least in field else 'At most '}{field[most]:,}{unit}."


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for choice in ("anyOf", "allOf", "oneOf"):
        if choice in schema:
            return " or ".join(_type(one) for one in schema[choice])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    kinds = schema.get("type", "any")
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


def _attributes(cls: type) -> dict[str, str]:
    """Return the texts under ``Attributes:`` in the docstring of a class, by name."""
    _, _, listed = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
    return {name: _markdown(text) for name, text in found}


def _summary(cls: type) -> str:
    return _markdown((inspect.getdoc(cls) or "").partition("\n\n")[0])


def _markdown(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("``", "`")


def _default(field: Field[Any]) -> str:
    if field.name == "kind":
        return "the name"
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return "required"
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, tuple):
        value = value[0]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,.0f}" if value % _MIB or not value else f"{value // _MIB} MiB"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


GENERATED: dict[str, Callable[[], str]] = {
    "settings": settings,
    "providers": providers,
    "errors": error_codes,
    "endpoints": endpoints,
}


def generated(text: str) -> str:
    """Return the text of a page with what is generated in it."""
    return _PLACE.sub(lambda found: GENERATED[found[1]](), text)


def _read(_app: Sphinx, _page: str, source: list[str]) -> None:
    source[0] = generated(source[0])


def _plurals(_app: Sphinx, *about: object) -> None:
    """Mark the end of a literal before a plural's s, as in ``Row``s, as reStructuredText wants it."""
    lines = cast("list[str]", about[-1])
    lines[:] = [re.sub(r"(?<=\w)``s\b", r"``\\ s", line) for line in lines]


def _short(_app: Sphinx, what: str, *about: object) -> tuple[str, object] | None:
    """Leave out what nobody writes: the arguments of exceptions, and the names of functions by default."""
    signature, returns = about[-2:]
    if not isinstance(signature, str):
        return None
    if what == "exception":
        return "", returns
    return re.sub(r" ?= ?<function [^ ]+>(?=[,)])", " = ...", signature), returns


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _plurals)
    app.connect("autodoc-process-signature", _short)
    return {"parallel_read_safe": True}
