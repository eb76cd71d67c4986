"""Entries of ``LLM_BATCHES_PROVIDERS`` that change their case, are renamed or removed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch


@pytest.fixture
def make(make_host: MakeHost, llm_provider: Simulator, tmp_path: Path) -> MakeHost:
    """Make apps on one database whose only provider has a name."""

    def make_named(name: str) -> Any:
        entry = {"provider": "openai", **llm_provider.settings}
        return make_host(database=tmp_path / "host.sqlite3", providers={name: entry})

    return make_named


def shown(client: FlaskClient, path: str) -> Any:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.get_json()


@pytest.mark.parametrize("now", ["openai", "OpenAI", "OPENAI"])
@pytest.mark.parametrize("before", ["openai", "OpenAI"])
def test_names_that_differ_only_in_case_are_one(
    make: MakeHost, llm_provider: Simulator, before: str, now: str
) -> None:
    """Regression: an entry that was spelled anew had none of its batches when it was named."""
    batch_id = create_batch(client_of(make(before), "ada"), model=f"{now}:m")
    ada = client_of(make(now), "ada")
    for name in ("openai", "OpenAI"):
        assert shown(ada, f"/v1/batches/{batch_id}?provider={name}")["provider"] == "openai"
        assert [one["id"] for one in shown(ada, f"/v1/batches?provider={name}")["data"]] == [batch_id]
    llm_provider.batches[0].finish()
    assert len(shown(ada, f"/v1/batches/{batch_id}/results?provider={before}")["results"]) == 3


def test_a_provider_that_was_taken_out(
    make: MakeHost, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Regression: its batches were ``unknown_provider``. The record says what it has, errors what is not."""
    before = client_of(make("old"), "ada")
    running, ended = (create_batch(before, model="old:m") for _ in range(2))
    llm_provider.batches[1].finish()
    assert shown(before, f"/v1/batches/{ended}")["status"] == "completed"

    app = make("new")
    ada, bob, admin = (client_of(app, name) for name in ("ada", "bob", None))
    llm_provider.calls.clear()
    for query in ("", "?provider=old", "?provider=OLD"):
        for client in (ada, admin):
            assert shown(client, f"/v1/batches/{running}{query}")["status"] == "validating"
            assert shown(client, f"/v1/batches/{ended}{query}")["status"] == "completed"
        assert [one["id"] for one in shown(ada, f"/v1/batches{query}")["data"]] == [ended, running]
        for ask in (
            partial(ada.get, f"/v1/batches/{running}/results{query}"),
            partial(ada.get, f"/v1/batches/{ended}/results{query}"),
            partial(ada.post, f"/v1/batches/{running}/cancel{query}"),
        ):
            answer = ask()
            assert (answer.status_code, answer.get_json()["error"]["code"]) == (
                503,
                "provider_not_configured",
            )
            assert (
                answer.get_json()["detail"] == "Provider 'old' is not in the settings of this server any more"
            )
    assert f"batch '{running}' is shown as last seen: 'old' is not in the settings" in caplog.text
    for path in (f"/v1/batches/{running}?provider=old", "/v1/batches?provider=old"):
        answer = bob.get(path)
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (400, "unknown_provider")
    create = ada.post("/v1/batches", json={"model": "old:m", "requests": []})
    assert create.get_json()["error"]["code"] == "unknown_provider"
    assert not llm_provider.calls
