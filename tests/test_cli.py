"""Every journey from a terminal: ``flask llm-batches ...``."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import Result
from flask import Flask

from flask_llm_batches import current_llm_batches
from flask_llm_batches.batch import Row
from flask_llm_batches.cli import cli
from flask_llm_batches.cli.output import for_people, lines
from flask_llm_batches.cli.results import _csv, _jsonl, _text, _written
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost
from tests.hosts import requests

Run = Callable[..., Result]


@pytest.fixture
def run(app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``flask llm-batches`` in a folder that has ``requests.jsonl`` with three requests."""
    monkeypatch.chdir(tmp_path)
    write(3)
    return lambda *args, **options: app.test_cli_runner().invoke(args=["llm-batches", *args], **options)


def write(count: int, name: str = "requests.jsonl") -> None:
    Path(name).write_text("".join(f"{json.dumps(one)}\n" for one in requests(count)))


MODEL = ("--model", "openai:gpt-4o-mini")


def submitted(run: Run, *options: str) -> str:
    done = run("submit", "requests.jsonl", *MODEL, *options)
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(commands(cli)), ids=" ".join)
def test_help_has_an_example_that_can_be_run(run: Run, path: tuple[str, ...]) -> None:
    """Each command says what it does, and has an example whose arguments it accepts."""
    shown = run(*path, "--help")
    assert shown.exit_code == 0
    line = " ".join(shown.stdout.partition("Example: ")[2].split())
    words = line.partition(" >")[0].split()
    assert words[: len(path) + 2] == ["flask", "llm-batches", *path]
    command: Any = cli
    for name in path:
        command = command.commands[name]
    with command.make_context(path[-1], words[len(path) + 2 :]) as context:
        assert len(context.params) == len(command.params)


def test_a_file_is_submitted_waited_for_and_read(run: Run, llm_provider: Simulator) -> None:
    """What is printed on standard output is what the next command takes."""
    batch_id = submitted(run, "--owner", "ada", "--metadata", "job=nightly", "--metadata", "a=b=c")
    assert run("list", "--owner", "ada").stdout.split("\t")[0] == batch_id
    assert run("list", "--search", "a=b=c").stdout.split("\t")[0] == batch_id
    assert run("list", "--owner", "bob").stdout == ""
    llm_provider.batches[0].finish()
    waited = run("wait", batch_id)
    assert waited.exit_code == 0, waited.stderr
    assert waited.stdout.split("\t")[:8] == [
        *(batch_id, "completed", "ada", "openai", "gpt-4o-mini", "3", "3", "0")
    ]
    lines = [json.loads(line) for line in run("results", batch_id).stdout.splitlines()]
    assert {line["custom_id"] for line in lines} == {"r0", "r1", "r2"}
    shown = json.loads(run("show", batch_id, "--json").stdout)
    assert (shown["metadata"], shown["owner"]) == ({"job": "nightly", "a": "b=c"}, "ada")
    assert len(shown["parts"]) == 1
    words = run("show", batch_id).stdout
    assert "request_counts\t3 total, 3 completed, 0 failed" in words
    assert "metadata\tjob=nightly, a=b=c" in words


def test_submitting_and_waiting_in_one(make_host: MakeHost, tmp_path: Path) -> None:
    """``submit --wait`` ends with the batches of all files, from files and standard input."""
    os.chdir(tmp_path)
    write(2)
    write(1, "more.jsonl")
    with Simulator(seconds=0.2) as simulator:
        app = make_host(database=tmp_path / "host.sqlite3", providers={"openai": simulator.settings})
        invoke = app.test_cli_runner().invoke
        done = invoke(
            args=["llm-batches", "submit", "requests.jsonl", "more.jsonl", *MODEL, "--wait", "--json"]
        )
        assert done.exit_code == 0, done.stderr
        ended = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(one["owner"], one["status"], one["request_counts"]["completed"]) for one in ended] == [
            ("operator", "completed", 2),
            ("operator", "completed", 1),
        ]
        again = invoke(args=["llm-batches", "submit", "-", *MODEL], input=Path("more.jsonl").read_bytes())
        assert again.stdout.startswith("batch_")
        assert len(simulator.batches) == 3


def test_a_dry_run_submits_nothing(run: Run, llm_provider: Simulator) -> None:
    """It prints the size, the parts and the cost."""
    shown = run("submit", "requests.jsonl", *MODEL, "--dry-run")
    assert shown.exit_code == 0
    assert "requests\t3" in shown.stdout
    assert "parts\t1" in shown.stdout
    assert json.loads(run("submit", "requests.jsonl", *MODEL, "--dry-run", "--json").stdout)["requests"] == 3
    assert llm_provider.batches == []


def test_a_key_makes_one_batch(run: Run, llm_provider: Simulator) -> None:
    """A repeated submit with the same key makes no second batch; a key for two files is refused."""
    assert submitted(run, "--key", "k") == submitted(run, "--key", "k")
    assert len(llm_provider.batches) == 1
    refused = run("submit", "requests.jsonl", "requests.jsonl", *MODEL, "--key", "k")
    assert refused.exit_code == 2


def respond(line: Any) -> dict[str, Any] | tuple[int, dict[str, Any]]:
    """Refuse one request, and answer another with what a spreadsheet would run."""
    if line["custom_id"] == "r1":
        return 400, {"error": {"code": "invalid_value", "message": "no\x1b[31m"}}
    text = "=cmd()" if line["custom_id"] == "r0" else "two\nlines \x1b[2J"
    return {"choices": [{"message": {"content": text}}], "model": "gpt-4o-mini"}


@pytest.fixture
def failing(
    make_host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Run, str]]:
    """A batch of three requests that has ended, one of which the provider refused."""
    monkeypatch.chdir(tmp_path)
    write(3)
    with Simulator(respond=respond) as simulator:
        app = make_host(database=tmp_path / "host.sqlite3", providers={"openai": simulator.settings})

        def run(*args: str) -> Result:
            return app.test_cli_runner().invoke(args=["llm-batches", *args])

        batch_id = submitted(run)
        simulator.batches[0].finish()
        yield run, batch_id


def test_a_failed_row_is_exit_code_1(failing: tuple[Run, str]) -> None:
    """``wait`` and ``results`` say by their exit code that a row has failed; ``retry`` repeats it."""
    run, batch_id = failing
    assert run("wait", batch_id).exit_code == 1
    all_rows = run("results", batch_id)
    assert (all_rows.exit_code, len(all_rows.stdout.splitlines())) == (1, 3)
    (row,) = run("results", batch_id, "--failed").stdout.splitlines()
    assert json.loads(row)["error"]["code"] == "invalid_value"
    again = run("retry", batch_id)
    assert again.exit_code == 0
    assert json.loads(run("show", again.stdout.strip(), "--json").stdout)["retry_of"] == batch_id


def test_formats_of_results(failing: tuple[Run, str]) -> None:
    """CSV has no formulas, and text has what the models wrote."""
    run, batch_id = failing
    table = list(csv.reader(io.StringIO(run("results", batch_id, "--format", "csv").stdout)))
    assert table[0] == ["custom_id", "text", "error_code", "error_message"]
    assert sorted(table[1:]) == [
        ["r0", "'=cmd()", "", ""],
        ["r1", "", "invalid_value", "no\x1b[31m"],
        ["r2", "two\nlines \x1b[2J", "", ""],
    ]
    text = run("results", batch_id, "--format", "text").stdout
    assert "== r0\n=cmd()\n\n" in text
    assert "== r1 failed\ninvalid_value: no" in text
    assert "== r2\ntwo\nlines" in text


def test_numbers_that_fit_into_no_float() -> None:
    """Regression: one such number in a result was the end of a table of results."""
    row = Row("r0", msgspec.Raw(b'{"choices": [{"message": {"content": "cold"}, "logprob": -1e400}]}'))
    assert _csv([row], str) == b'"r0","cold","",""\r\n'
    assert _text([row], str) == b"== r0\ncold\n\n"


@pytest.mark.parametrize("write", [_jsonl, _csv, _text])
def test_rows_do_not_control_a_terminal(
    write: Callable[[Sequence[Row], Callable[[str], str]], bytes],
) -> None:
    """Regression: a terminal obeyed escapes in a table, and C1 codes in JSON. A file has them as they are."""
    body = json.dumps({"choices": [{"message": {"content": "\x1b[2J\x9b2Jtwo\nlines"}}]}, ensure_ascii=False)
    row = Row("r0", msgspec.Raw(body.encode()))
    on_terminal = write([row], lines).decode()
    assert not {"\x1b", "\x9b"} & set(on_terminal)
    assert "two" in on_terminal
    assert "\x9b" in write([row], str).decode()
    if write is _jsonl:
        assert json.loads(on_terminal) == json.loads(write([row], str))


def test_a_file_of_results_is_whole_or_not_there(failing: tuple[Run, str], tmp_path: Path) -> None:
    """``-o`` keeps an older file until all rows are there, and leaves nothing half-written."""
    run, batch_id = failing
    Path("rows.jsonl").touch(mode=0o600)
    done = run("results", batch_id, "-o", "rows.jsonl")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "3 rows, of which 1 failed, are in rows.jsonl" in done.stderr
    assert len(Path("rows.jsonl").read_text().splitlines()) == 3
    assert stat.S_IMODE(Path("rows.jsonl").stat().st_mode) == 0o600
    assert run("results", batch_id, "-o", str(tmp_path / "none" / "rows")).exit_code == 2
    assert not list(tmp_path.glob("*.part"))


def test_what_is_no_file_is_not_replaced(failing: tuple[Run, str]) -> None:
    """Regression: ``-o`` put a file in the place of a device, a pipe or a link."""
    run, batch_id = failing
    os.mkfifo("pipe")
    Path("rows.jsonl").touch()
    Path("link").symlink_to("rows.jsonl")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("results", batch_id, "-o", "pipe").exit_code == 1
        assert os.read(reader, 1 << 16).count(b"\n") == 3
    finally:
        os.close(reader)
    assert run("results", batch_id, "-o", "link").exit_code == 1
    assert Path("pipe").is_fifo()
    assert Path("link").is_symlink()
    assert len(Path("rows.jsonl").read_text().splitlines()) == 3


def test_two_commands_write_one_file(tmp_path: Path) -> None:
    """Regression: the rows of two commands were mixed in the file of the first one that ended."""
    path = tmp_path / "rows"
    with ExitStack() as first, ExitStack() as second:
        one, other = (stack.enter_context(_written(str(path))) for stack in (first, second))
        other.write(b"half")
        one.write(b"the first\n")
        first.close()
        assert path.read_bytes() == b"the first\n"
        other.write(b" of the second\n")
    assert path.read_bytes() == b"half of the second\n"


def test_a_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: standard output on a full disk was a traceback, with the exit code of rows that failed."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("flask_llm_batches.cli.batches.print_batches", full)
    done = run("list")
    assert (done.exit_code, done.stderr) == (
        2,
        "Error: The output cannot be written: No space left on device\n",
    )


def test_a_closed_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: commands without a standard output, as after >&-, were a traceback."""
    monkeypatch.setattr(sys, "stdout", None)
    assert not for_people()


def test_exit_codes(run: Run, llm_provider: Simulator) -> None:
    """2 is what cannot be done; 3 is the provider, or what else is outside."""
    assert run("submit", "requests.jsonl", "--model", ":").exit_code == 2
    assert run("submit", "none.jsonl", *MODEL).exit_code == 2
    assert run("show", "batch_none").exit_code == 2
    assert run("wait").exit_code == 2
    assert run("keys", "revoke", str(1 << 64)).exit_code == 2
    assert "--before: Not a day" in run("purge", "--before", "x").stderr
    assert "--key: Not 1 to 255" in run("submit", "requests.jsonl", *MODEL, "--key", "a b").stderr
    assert "\nError: lines: Shorter" in run("submit", os.devnull, *MODEL).stderr
    assert run("submit", "requests.jsonl", *MODEL, "--metadata", "a=\udcff").exit_code == 2
    assert run("list").stdout == ""
    batch_id = submitted(run)
    assert run("results", batch_id).exit_code == 2
    llm_provider.fail_next(500, on="POST /files")
    failed = run("submit", "requests.jsonl", *MODEL)
    assert failed.exit_code == 3
    assert failed.stdout == ""
    assert "requests.jsonl: not submitted" in failed.stderr


def test_an_owner_sees_their_own(run: Run, llm_provider: Simulator) -> None:
    """With ``--owner``, another one's batch does not exist, for every command about a batch."""
    batch_id = submitted(run, "--owner", "ada")
    llm_provider.batches[0].finish()
    for command in ("show", "parts", "cancel", "wait", "results", "retry"):
        refused = run(command, batch_id, "--owner", "bob")
        assert (refused.exit_code, refused.stdout) == (2, ""), command
        assert "No batch here has this id" in refused.stderr
        hidden = run(command, batch_id, "--owner", "bob", "--provider", "openai")
        assert (hidden.exit_code, hidden.stdout) == (2, ""), command
        assert "not found" in hidden.stderr
    assert run("usage", "--owner", "bob", "--group-by", "owner").stdout.count("\n") == 1
    assert run("show", batch_id, "--owner", "ada").exit_code == 0


def test_cancelling(run: Run, llm_provider: Simulator) -> None:
    """``cancel`` prints the batches as they are then."""
    batch_id = submitted(run)
    assert run("cancel", batch_id).stdout.split("\t")[:2] == [batch_id, "cancelling"]
    assert llm_provider.batches[0].status == "cancelling"


def test_checking(run: Run, llm_provider: Simulator) -> None:
    """``check`` prints a line for each thing, and what to do about a problem, with exit code 1."""
    well = run("check", "--live")
    assert well.exit_code == 0, well.stdout
    assert {line.split("\t")[0] for line in well.stdout.splitlines()} == {"ok"}
    llm_provider.fail_next(401, on="GET /batches")
    wrong = run("check", "--live")
    assert wrong.exit_code == 1
    assert "refuses the key (401)" in wrong.stdout
    llm_provider.fail_next(401, on="GET /batches")
    found = [json.loads(line) for line in run("check", "--live", "--json").stdout.splitlines()]
    assert [one["subject"] for one in found if one["problem"]] == ["provider openai"]


@contextmanager
def in_terminal(
    args: list[str], environ: dict[str, str], folder: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a command on a terminal of its own, and yield it with the terminal."""
    here, there = pty.openpty()
    environ = os.environ | environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
    command = [sys.executable, "-m", "flask", "--app", "tests.hosts:from_environment()", "llm-batches", *args]
    with subprocess.Popen(
        command, env=environ, cwd=folder, stdin=there, stdout=there, stderr=there
    ) as started:
        os.close(there)
        try:
            yield started, here
        finally:
            started.kill()
            os.close(here)


def read_until(terminal: int, text: str, seconds: float = 60) -> str:
    found, until = "", time.monotonic() + seconds
    while text not in found and time.monotonic() < until:
        try:
            found += os.read(terminal, 65536).decode()
        except OSError:  # the command has ended
            break
    return found


@pytest.mark.slow
def test_a_terminal_shows_tables_and_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal there are tables and a bar; Ctrl-C leaves the batch alone, and says how to go on."""
    monkeypatch.chdir(tmp_path)
    write(1200)
    with Simulator() as simulator:
        environ = {
            "HOST_DATABASE": f"sqlite:///{tmp_path / 'host.sqlite3'}",
            "HOST_PROVIDERS": json.dumps({"openai": simulator.settings}),
            "HOST_SPOOL": str(tmp_path),
        }
        with in_terminal(["submit", "requests.jsonl", *MODEL, "--wait"], environ, tmp_path) as (
            waiting,
            terminal,
        ):
            assert "0/1200" in read_until(terminal, "0/1200")
            waiting.send_signal(signal.SIGINT)
            said = read_until(terminal, "never")
            assert waiting.wait(30) == 130
        batch_id = simulator.batches[0].id
        assert f"flask llm-batches wait {batch_id}" in said
        simulator.batches[0].finish()
        with in_terminal(["list"], environ, tmp_path) as (listing, terminal):
            shown = read_until(terminal, "never")
            assert listing.wait(30) == 0
        assert "status" in shown
        assert "0/1,200" in shown


def test_what_callers_choose_does_not_control_a_terminal(app: Flask, run: Run) -> None:
    """Control characters in metadata are printed as escapes."""
    with app.app_context():
        batch = current_llm_batches.create(
            owner="ada", model="openai:gpt-4o-mini", requests=requests(1), metadata={"a": "\x1b[2J\n[bold]"}
        )
    assert "a=\\x1b[2J\\n[bold]" in run("show", batch.id).stdout


def test_what_providers_say_does_not_control_a_terminal(run: Run, llm_provider: Simulator) -> None:
    """Regression: the reason of a provider was printed as it is if a command failed because of it."""
    batch_id = submitted(run)
    llm_provider.batches[0].fail("bad\x1b]0;title\x07\nError: forged")
    done = run("results", batch_id)
    assert done.exit_code == 1
    assert "bad\\x1b]0;title\\x07\\nError: forged" in done.stderr
    llm_provider.fail_next(400, on="POST /batches", message="bad\x1b[2J")
    assert "bad\\x1b[2J" in run("submit", "requests.jsonl", *MODEL).stderr
