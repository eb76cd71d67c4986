"""The blocks of the README and of docs that need processes: shells, servers, clients, and the tutorial."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from flask import Flask

from flask_llm_batches.config import Settings
from flask_llm_batches.testing import Simulator
from tests.documents import ROOT, Namespace, block, run
from tests.hosts import requests
from tests.servers import free_port, gunicorn


def test_the_two_commands_are_targets() -> None:
    """``make demo`` and ``make test`` are what they say; CI runs them."""
    for line in block("make demo").splitlines():
        plan = subprocess.run(
            ["make", "-n", "-B", line.split()[1]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "-m example_app" in plan.stdout or "-m pytest" in plan.stdout


@pytest.mark.slow
def test_the_curl_lines(tmp_path: Path) -> None:
    """The curl lines work as printed, against the demo's app."""
    port = free_port()
    blocks = (block("curl -s -u ada"), block("/cancel -X POST"), block("gzip -c requests.jsonl"))
    script = "\n".join(blocks).replace(":5000/", f":{port}/")
    _, *serve = block("example_app serve").split()
    command = [sys.executable, *serve, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            assert "endpoints at" in server.stdout.readline()
            done = subprocess.run(
                ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True
            )
        finally:
            server.terminate()
    assert done.stdout.count('"object":"batch"') == 5
    assert "batch_not_complete" in done.stdout
    assert '"status":"cancelling"' in done.stdout


@pytest.mark.slow
def test_openais_client(tmp_path: Path) -> None:
    """OpenAI's client makes a batch, asks after it, and fetches its results."""
    with Simulator(seconds=1) as simulator, gunicorn(simulator, tmp_path, "--threads=4") as server:
        key = httpx.post(f"{server.url}/keys/ada").text
        code = block("from openai import OpenAI").replace("http://127.0.0.1:5000", server.url)
        create, results = re.sub(r'(?<=api_key=")[^"]+', key, code).split("results = ")
        names: Namespace = {"requests": requests(2)}
        run(create, names)
        with names["client"] as client:
            with pytest.raises(openai.ConflictError):
                run(f"results = {results}", names)
            while client.batches.retrieve(names["batch"].id).status != "completed":
                time.sleep(0.1)
            run(f"results = {results}", names)
    assert len(names["results"]["results"]) == 2


def test_programs_for_openai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map is one, and the program gets its rows from the provider that the map names."""
    app = Flask("settings")
    run(block("LLM_BATCHES_MODELS"), {"app": app})
    assert Settings.from_config(app.config).models["gpt-4o-mini"] == "anthropic:claude-haiku-4-5"
    lines = [
        {"custom_id": one["custom_id"], "body": {**one["body"], "model": "gpt-4o-mini"}}
        for one in requests(3)
    ]
    (tmp_path / "batch_tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.chdir(tmp_path)
    code = block("batch_tasks.jsonl").replace("open(", "opened(")
    mapped = "tests.hosts:mapped('anthropic:claude-haiku-4-5')"
    with Simulator(seconds=0) as simulator, gunicorn(simulator, tmp_path, app=mapped) as server:
        key = httpx.post(f"{server.url}/keys/42").text
        names: Namespace = {
            "OpenAI": openai.OpenAI,
            "time": time,
            "opened": lambda path, _: Path(path).read_bytes(),
        }
        run(code.replace("http://127.0.0.1:5000", server.url).replace("llmb_...", key), names)
        names["client"].close()
        assert len(names["rows"]) == 3
        assert [batch.protocol for batch in simulator.batches] == ["anthropic"]


@pytest.mark.slow
def test_the_simulator_runs_by_itself() -> None:
    """``python -m flask_llm_batches.testing`` prints its address and answers there."""
    port = free_port()
    _, *line = block("flask_llm_batches.testing --port").replace("8999", str(port)).split()
    command = [sys.executable, *line]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"http://127.0.0.1:{port}/v1\n"
        assert process.stdout.readline().startswith('LLM_BATCHES_PROVIDERS = {"openai": {"api_key": ')
        process.terminate()


@contextmanager
def running(*command: str, folder: Path, until: str, **environment: str) -> Iterator[None]:
    """Run a command in a folder, from the moment at which it has printed something."""
    log = folder / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            wait_for(lambda: until in log.read_text())
            yield
        finally:
            process.terminate()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is true, for a minute at most."""
    ends_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.1)


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path) -> None:
    """Somebody who follows the tutorial to the letter gets the labels, a list, and a test that passes."""
    port, provider_port = str(free_port()), str(free_port())
    flask = [str(Path(sys.executable).with_name("flask")), "run", "--port", port]
    url = f"http://127.0.0.1:{port}"

    def script(text: str) -> str:
        text = text.replace(". .venv/bin/activate\n", "").replace("http://127.0.0.1:5000", url)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-ec", text],
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert "pip install flask-llm-batches" in block("mkdir tickets")
    (tmp_path / "app.py").write_text(block("# app.py, as it is"))
    with running(*flask, folder=tmp_path, until="Running on"):
        assert httpx.get(url).json()[0] == ["The page is empty.", None]

    (tmp_path / "provider.py").write_text(block("# provider.py").replace("8999", provider_port))
    assert block("python provider.py").splitlines()[-1] == "python provider.py"
    (tmp_path / "app.py").write_text(block("# app.py, with batches"))
    export, run = block("sk-simulated").replace("8999", provider_port).splitlines()
    assert run == "flask run"
    name, _, value = shlex.split(export)[1].partition("=")
    (folder := tmp_path / "provider").mkdir()
    with (
        running(sys.executable, str(tmp_path / "provider.py"), folder=folder, until="sk-simulated"),
        running(*flask, folder=tmp_path, until="Running on", **{name: value}),
    ):
        assert '"batch":"batch_' in script(block("curl -X POST http://127.0.0.1:5000/label"))
        wait_for(lambda: all(label for _, label in httpx.get(url).json()))
        assert [label for _, label in httpx.get(url).json()] == ["bug", "question", "bug"]
        listed = json.loads(script(block("KEY=$(flask")))
        assert [batch["status"] for batch in listed["data"]] == ["completed"]

    (tmp_path / "test_app.py").write_text(block("# test_app.py"))
    script(f"{sys.executable} -m pytest -q -p no:cacheprovider test_app.py")
    remove, export, _ = block("rm instance/tickets.sqlite3").splitlines()
    script(remove)
    config: dict[str, Any] = {"LLM_BATCHES_PROVIDERS": json.loads(shlex.split(export)[1].partition("=")[2])}
    assert Settings.from_config(config).providers is not None
