"""What is done is put into the usage, once."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_llm_batches.core.usage import count_tokens
from flask_llm_batches.testing import Simulator
from tests.conftest import client_of, create_batch


def usage(tmp_path: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(tmp_path / "host.sqlite3") as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM llm_batches_usage ORDER BY id")]


def test_a_create_and_its_results_are_accounted_once(
    app: Flask, ada: FlaskClient, admin: FlaskClient, llm_provider: Simulator, tmp_path: Path
) -> None:
    """A create is one row, and results are one more however often and by whom they are fetched."""
    llm_provider.respond = lambda line: {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": line["body"]["model"],
        "choices": [],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }
    batch_id = create_batch(ada, 3)
    assert ada.get(f"/v1/batches/{batch_id}/results").status_code == 409
    llm_provider.batches[0].finish()
    for client in (admin, ada, ada):
        assert client.get(f"/v1/batches/{batch_id}/results").status_code == 200
    create, results = usage(tmp_path)
    assert (create["event"], create["requests"], create["total_tokens"]) == ("create", 3, None)
    assert results["event"] == "results"
    assert (results["owner"], results["requested_by"]) == ("ada", "master-key")
    assert (results["provider"], results["model"], results["requests"]) == ("openai", "gpt-4o-mini", 3)
    tokens = ("prompt_tokens", "completion_tokens", "cached_tokens", "total_tokens")
    assert [results[name] for name in tokens] == [30, 15, 12, 45]


@pytest.mark.parametrize(
    ("stated", "counted"),
    [
        ({"prompt_tokens": 3, "total_tokens": 3}, (3, 0, 0, 3)),
        ({"input_tokens": 3, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1}}, (3, 2, 1, 5)),
        ({"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": None}, (3, 2, 0, 5)),
        ({"prompt_tokens": None}, (0, 0, 0, 0)),
        (None, (0, 0, 0, 0)),
        ("many", (0, 0, 0, 0)),
    ],
)
def test_tokens_are_counted(stated: object, counted: tuple[int, ...]) -> None:
    """The usage of chat completions, responses and embeddings is understood; a failed row has none."""
    row = {"custom_id": "a", "result": {"usage": stated}, "error": None}
    assert count_tokens([row, {"custom_id": "b", "result": None, "error": {}}]) == counted


def test_the_creator_pays(admin: FlaskClient, llm_provider: Simulator, tmp_path: Path) -> None:
    """What an admin makes for somebody is that somebody's usage, and says who asked."""
    create_batch(admin, user="ada")
    (row,) = usage(tmp_path)
    assert (row["owner"], row["requested_by"]) == ("ada", "master-key")


def test_what_the_provider_forgets_is_remembered(
    ada: FlaskClient, llm_provider: Simulator, tmp_path: Path
) -> None:
    """The metadata of a batch comes from our record where a provider does not give it back."""
    batch_id = create_batch(ada, metadata={"team": "search"})
    llm_provider.batches[0].metadata = None
    for _ in range(2):
        assert ada.get(f"/v1/batches/{batch_id}").get_json()["metadata"] == {"team": "search"}
    assert (
        client_of(ada.application, "ada").get("/v1/batches").get_json()["data"][0]["model"] == "gpt-4o-mini"
    )
