"""The names of models that callers use, and what they stand for."""

from __future__ import annotations

from typing import Any

import pytest

from flask_llm_batches import current_llm_batches, errors
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of
from tests.hosts import requests

MODELS = {
    "gpt-4o-mini": "openai:gpt-4.1-nano",
    "fast": "anthropic:claude-haiku-4-5",
    "claude-*": "anthropic:claude-*",
    "*-latest": "mistral:*-latest",
    "ft:*": "openai:ft:*",
}


@pytest.mark.parametrize(
    ("name", "stands_for"),
    [
        ("gpt-4o-mini", ("openai", "gpt-4.1-nano")),
        ("fast", ("anthropic", "claude-haiku-4-5")),
        ("claude-opus", ("anthropic", "claude-opus")),
        ("mistral-small-latest", ("mistral", "mistral-small-latest")),
        ("ft:gpt-4o:me::1", ("openai", "ft:gpt-4o:me::1")),
        ("openai:claude-x", ("openai", "claude-x")),
        ("openai/org/model", ("openai", "org/model")),
        ("OpenAI:fast", ("openai", "fast")),
    ],
)
def test_what_a_name_stands_for(
    make_host: MakeHost, llm_provider: Simulator, name: str, stands_for: tuple[str, str]
) -> None:
    """A name is looked up in the map, then as ``provider:model``, then in the patterns."""
    app = make_host(providers=llm_provider.providers, models=MODELS)
    with app.app_context():
        assert current_llm_batches.models.resolve(name) == stands_for


@pytest.mark.parametrize(
    "name", ["gpt-5", "claude", "nobody:gpt-5", "meta/llama", "", " ", ":a", "openai:", 3]
)
def test_what_stands_for_nothing(make_host: MakeHost, llm_provider: Simulator, name: Any) -> None:
    """With several providers a plain name needs the map, and the error says so."""
    app = make_host(providers=llm_provider.providers, models=MODELS)
    with app.app_context(), pytest.raises((errors.InvalidModel, errors.UnknownProvider)) as caught:
        current_llm_batches.models.resolve(name)
    plain = isinstance(name, str) and ":" not in name and "/" not in name
    assert ("LLM_BATCHES_MODELS" in str(caught.value)) is plain or name in (":a", "openai:")


@pytest.mark.parametrize("name", ["gpt-", "gpt-" + "x" * 256, "openai:" + "x" * 256, "openai:\ud800"])
def test_a_model_that_cannot_be_recorded_stands_for_nothing(make_host: MakeHost, name: str) -> None:
    """Regression: a long model was a 503 of PostgreSQL's, and a pattern could stand for an empty one."""
    app = make_host(models={"gpt-*": "openai:*"})
    with app.app_context(), pytest.raises(errors.InvalidModel):
        current_llm_batches.models.resolve(name)


@pytest.mark.parametrize("name", ["gpt-5", "ft:gpt-4o:me::1"])
def test_one_provider_needs_no_map(make_host: MakeHost, name: str) -> None:
    """A plain name is its own; a provider that is not there is still an error."""
    with make_host().app_context():
        assert current_llm_batches.models.resolve(name) == ("openai", name)
        with pytest.raises(errors.UnknownProvider):
            current_llm_batches.models.resolve("opneai:gpt-5")


def test_creates_understand_the_map(make_host: MakeHost, llm_provider: Simulator) -> None:
    """As the model of a batch, and in every request."""
    app = make_host(providers=llm_provider.providers, models=MODELS)
    ada = client_of(app, "ada")
    of_batch = {"model": "gpt-4o-mini", "requests": requests(2)}
    in_lines = {"requests": requests(2, model="fast", max_tokens=9)}
    for body, provider, model in (
        (of_batch, "openai", "gpt-4.1-nano"),
        (in_lines, "anthropic", "claude-haiku-4-5"),
    ):
        answer = ada.post("/v1/batches", json=body)
        assert answer.status_code == 200, answer.text
        assert (answer.get_json()["provider"], answer.get_json()["model"]) == (provider, model)
        assert {line["body"]["model"] for line in llm_provider.batches[-1].requests} == {model}


def test_models_are_listed(make_host: MakeHost, llm_provider: Simulator) -> None:
    """OpenAI's list has the names of the map, without its patterns."""
    ada = client_of(make_host(providers=llm_provider.providers, models=MODELS), "ada")
    fast = {"id": "fast", "object": "model", "created": 0, "owned_by": "anthropic"}
    listed = ada.get("/v1/models").get_json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["gpt-4o-mini", "fast"]
    assert listed["data"][1] == fast == ada.get("/v1/models/fast").get_json()
    answer = ada.get("/v1/models/claude-opus")
    assert answer.status_code == 404
    assert answer.get_json()["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ("gpt", "a dict such as"),
        ({"a b": "openai:m"}, "visible ASCII"),
        ({"": "openai:m"}, "visible ASCII"),
        ({"a*b*": "openai:m"}, "one \\* at most"),
        ({"gpt": "gpt-4o"}, '"provider:model"'),
        ({"gpt": 3}, '"provider:model"'),
        ({"gpt": "openai:*"}, "needs one, too"),
        ({"gpt": "mistral:m"}, "LLM_BATCHES_PROVIDERS"),
    ],
)
def test_a_wrong_map_is_named(make_host: MakeHost, models: Any, words: str) -> None:
    """The app does not start with a map that stands for nothing."""
    with pytest.raises(errors.ConfigurationError, match=words):
        make_host(models=models)
