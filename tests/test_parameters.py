"""Nothing of a request is dropped without a word, whichever provider it goes to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from any_llm import AnyLLM, LLMProvider

from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of
from tests.others import Others

SIMULATED = {"anthropic": "anthropic", "mistral": "mistral", "neosantara": "openai", "openai": "openai"}
"""The simulator's protocol that a provider speaks."""

REFUSED = {"azureanthropic", "bedrock", "otari", "vertexai", "vertexaianthropic"}
"""Those whose batches any-llm cannot make, or nobody could fetch."""

TAKE_ALL = {"mistral", "neosantara", "openai", "together"}

LOOKED_AT = {*SIMULATED, *REFUSED, "gemini", "together"}

# Every value is one of a kind, so that it is found under whatever name the provider has for it.
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "say 8317"}], "max_tokens": 4103}
MORE: dict[str, Any] = {
    "frequency_penalty": 0.171,
    "logit_bias": {"50256": -97},
    "made_up_by_a_caller": {"deep": ["made up 5531"]},
    "max_completion_tokens": 4104,
    "metadata": {"team": "metadata 5532"},
    "n": 7919,
    "presence_penalty": 0.173,
    "reasoning_effort": "effort 5533",
    "response_format": {"type": "json_schema", "json_schema": {"name": "schema-5534", "schema": {}}},
    "seed": 7907,
    "stop": "stop 5535",
    "temperature": 0.379,
    "tool_choice": "choice 5536",
    "tools": [{"type": "function", "function": {"name": "tool-5537", "parameters": {"type": "object"}}}],
    "top_k": 7901,
    "top_p": 0.837,
    "user": "user 5538",
}


def leaves(value: Any) -> Iterator[Any]:
    """Yield the figures and texts of a JSON value."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        yield value
        return
    for inner in value:
        yield from leaves(inner)


@pytest.mark.slow  # it imports every SDK that is there
def test_every_provider_with_batches_was_looked_at() -> None:
    """A provider that is new in any-llm is one that somebody has to look at."""
    found = set()
    for provider in LLMProvider:
        with suppress(ImportError):  # its package is missing
            if AnyLLM.get_provider_class(provider).SUPPORTS_BATCH:
                found.add(provider.value)
    assert found <= LOOKED_AT


@pytest.mark.parametrize("provider", sorted(LOOKED_AT))
def test_every_parameter_arrives_or_is_refused(
    make_host: MakeHost,
    llm_provider: Simulator,
    others: Others,
    tmp_path: Path,
    provider: str,
) -> None:
    """Each key of a body arrives with its value, or the answer is a 4xx and nothing was sent."""
    try:
        missing = AnyLLM.get_provider_class(provider).MISSING_PACKAGES_ERROR
    except ImportError as error:
        missing = error
    if missing and provider not in REFUSED:
        pytest.skip(f"{provider}: {missing}")
    settings: dict[str, Any] = {"api_key": "k", "api_base": others.url}
    if provider in SIMULATED:
        settings = dict(llm_provider.providers[SIMULATED[provider]])
    ada = client_of(make_host(providers={provider: settings}, database=tmp_path / "host.sqlite3"), "ada")

    arrived: set[str] = set()
    for more in ({}, *({name: value} for name, value in MORE.items()), MORE):
        llm_provider.calls.clear()
        others.sent.clear()
        body = {**BODY, **more}
        if "max_completion_tokens" in more:
            del body["max_tokens"]
        request = {"custom_id": "r0", "body": body}
        answer = ada.post("/v1/batches", json={"model": f"{provider}:m1", "requests": [request]})
        if answer.status_code == 200:
            if provider in SIMULATED:
                wire: Any = llm_provider.batches[-1].requests
            elif provider == "together":
                wire = [json.loads(content) for _, path, content in others.sent if path == "/put"]
            else:
                wire = json.loads(others.sent[-1][2])
            assert set(leaves(body)) <= set(leaves(wire)), more
            arrived.update(body)
        else:
            assert 400 <= answer.status_code < 500, answer.text
            assert not others.sent
            assert not [call for call in llm_provider.calls if call.method == "POST"]
            assert answer.get_json()["detail"]
            if provider in REFUSED:
                assert answer.get_json()["error"]["code"] == "unsupported_provider"
    assert bool(arrived) == (provider not in REFUSED)
    if provider in TAKE_ALL:
        assert arrived == {*BODY, *MORE}
