"""The OpenAPI document is right, and the app is as it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from flask_llm_batches import LLMBatches
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost
from tests.hosts import MASTER_KEY
from tests.servers import gunicorn

STATUSES = {
    ("get", ""): set(),
    ("post", ""): {404, 409, 413, 415},
    ("get", "/usage"): set(),
    ("get", "/{batch_id}"): {404},
    ("post", "/{batch_id}/cancel"): {404},
    ("post", "/{batch_id}/retry"): {404, 409, 410},
    ("get", "/{batch_id}/results"): {404, 409, 410},
}
BESIDE = {401, 403, 405, 422, 429, 500, 503}
FILES = {
    ("get", "/v1/files"): {200},
    ("post", "/v1/files"): {200, 400, 413, 415, 501},
    ("get", "/v1/files/{file_id}"): {200, 404, 409, 410, 502, 504},
    ("delete", "/v1/files/{file_id}"): {200, 404},
    ("get", "/v1/files/{file_id}/content"): {200, 206, 404, 409, 410, 416, 502, 504},
    ("get", "/v1/models"): {200},
    ("get", "/v1/models/{model}"): {200, 404},
}
WEBHOOK = {204, 401, 405, 413, 500, 503}
EVERYWHERE = {200, 400, 401, 403, 405, 422, 429, 500, 502, 503, 504}


def test_the_document_is_valid_and_complete(app: Flask) -> None:
    """Anybody may read the document; it is valid, and has every route with every status of it."""
    answer = app.test_client().get("/v1/batches/openapi.json")
    assert answer.status_code == 200
    document = answer.get_json()
    OpenAPIV31SpecValidator(document).validate()
    routes = {(method, path) for path, methods in document["paths"].items() for method in methods}
    webhook = "/v1/batches/webhooks/{provider}"
    batches = {(method, f"/v1/batches{path}") for method, path in STATUSES}
    assert routes == batches | {("post", webhook)} | FILES.keys()
    for (method, path), statuses in FILES.items():
        assert set(map(int, document["paths"][path][method]["responses"])) == BESIDE | statuses
    assert set(map(int, document["paths"][webhook]["post"]["responses"])) == WEBHOOK
    for (method, path), more in STATUSES.items():
        responses = document["paths"][f"/v1/batches{path}"][method]["responses"]
        assert set(map(int, responses)) == EVERYWHERE | more


def test_the_document_has_both_kinds_of_bodies(app: Flask) -> None:
    """JSON and JSONL go in and come out, a create's own parameters are in the query with JSONL only."""
    paths = app.test_client().get("/v1/batches/openapi.json").get_json()["paths"]
    create, results = paths["/v1/batches"]["post"], paths["/v1/batches/{batch_id}/results"]["get"]
    kinds = {"application/json", "application/jsonl", "application/x-ndjson"}
    assert set(create["requestBody"]["content"]) == kinds
    assert set(results["responses"]["200"]["content"]) == kinds
    assert {parameter["name"] for parameter in create["parameters"]} == {
        *("dry_run", "model", "completion_window", "endpoint", "user", "on_results", "webhook", "metadata"),
        "retries",
        "Idempotency-Key",
    }
    assert not any(parameter.get("required") for parameter in create["parameters"])
    assert {parameter["name"] for parameter in results["parameters"]} == {"batch_id", "provider", "status"}
    answers = create["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert [answer["$ref"].rpartition("/")[2] for answer in answers] == ["Batch", "Checked"]


def test_the_example_works(ada: FlaskClient) -> None:
    """The document's example of a create is accepted as it is."""
    create = ada.get("/v1/batches/openapi.json").get_json()["paths"]["/v1/batches"]["post"]
    example = create["requestBody"]["content"]["application/json"]["example"]
    assert ada.post("/v1/batches", json=example).status_code == 200


def test_the_document_knows_where_it_is(make_host: MakeHost) -> None:
    """The paths are those of the prefix it was asked under, the server is what a proxy puts before it."""
    app = make_host(url_prefix=["/a", "/b"])
    for prefix in ("/a", "/b"):
        client = app.test_client()
        document = client.get(f"{prefix}/openapi.json", environ_overrides={"SCRIPT_NAME": "/base"}).get_json()
        assert prefix in document["paths"]
        assert document["servers"] == [{"url": "/base"}]
        # Regression: with a slash at the end, no path of the document led anywhere.
        assert client.get(f"{prefix}/openapi.json/").get_json()["paths"].keys() == document["paths"].keys()


def test_the_command_knows_where_it_is_too(llm_provider: Simulator) -> None:
    """Regression: the printed document had the prefix of the settings where the host had chosen another."""
    app = Flask("host")
    extension = LLMBatches()
    extension.init_app(app, register_blueprint=False)
    printed = app.test_cli_runner().invoke(args=["llm-batches", "openapi"])
    assert printed.exit_code == 2
    assert "register_blueprint" in printed.output
    app.register_blueprint(extension.blueprint, url_prefix="/internal/batches")
    printed = app.test_cli_runner().invoke(args=["llm-batches", "openapi"])
    assert "/internal/batches/{batch_id}" in json.loads(printed.output)["paths"]


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """Generated calls meet no undocumented status, no answer beside its schema and no 500."""
    with (
        Simulator(seconds=1) as simulator,
        gunicorn(simulator, tmp_path, "--threads=4", "--limit-request-line=0") as server,
    ):
        config = Path(__file__).parent / "schemathesis.toml"
        location = f"{server.url}/v1/batches/openapi.json"
        command = [
            str(Path(sys.executable).parent / "schemathesis"),
            f"--config-file={config}",
            "run",
            location,
        ]
        options = ["--header", f"Authorization: Bearer {MASTER_KEY}", "--checks=all", "-n", "25", "--seed=1"]
        # How long a call takes to be generated and answered says more about the machine than about the app.
        options += ["--suppress-health-check=all", "--request-timeout=60", "--max-response-time=60"]
        run = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout
    assert "Traceback" not in server.log
