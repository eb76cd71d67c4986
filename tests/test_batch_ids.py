"""Ids of every provider reach the right endpoint; what is no id reaches no provider."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from flask.testing import FlaskClient

from flask_llm_batches.testing import Simulator
from tests.conftest import create_batch

IDS = ["batches/abc", "arn:aws:bedrock:us-east-1:1:model-invocation-job/x", "a b", "über", "results"]


@pytest.mark.parametrize("batch_id", IDS)
@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("slash", ["", "/"])
def test_ids_reach_all_four_routes(
    ada: FlaskClient, llm_provider: Simulator, batch_id: str, encoded: bool, slash: str
) -> None:
    """Slashes and colons work raw and percent-encoded, with one slash at the end and without."""
    llm_provider.next_batch_id = batch_id
    assert create_batch(ada) == batch_id
    path = f"/v1/batches/{quote(batch_id, safe='' if encoded else '/:')}"
    assert ada.get(f"{path}{slash}").get_json()["id"] == batch_id
    assert ada.get(f"{path}/results{slash}").status_code == 409
    assert ada.post(f"{path}/cancel{slash}").get_json()["status"] == "cancelling"
    llm_provider.batches[0].status = "in_progress"
    llm_provider.batches[0].finish()
    assert len(ada.get(f"{path}/results{slash}").get_json()["results"]) == 3
    assert ada.get("/v1/batches/").get_json()["data"][0]["id"] == batch_id


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../x",
        "a/../b",
        "a/.",
        ".",
        "a//b",
        "a//",
        "//a",
        "a%3Fb",
        "a%23b",
        "a%00b",
        "a%0Ab",
        "a%7Fb",
        "a%C2%85b",
        "%2E%2E",
        "a%2F%2E%2E",
        "x" * 513,
    ],
)
@pytest.mark.parametrize("suffix", ["", "/results", "/cancel"])
def test_what_is_no_id_reaches_no_provider(
    admin: FlaskClient, llm_provider: Simulator, path: str, suffix: str
) -> None:
    """Control characters, marks of a URL, empty and dot segments and long ids are a 404, for an admin too."""
    method = "POST" if suffix == "/cancel" else "GET"
    answer = admin.open(f"/v1/batches/{path}{suffix}?provider=openai", method=method)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "not_found")
    assert not llm_provider.calls
