"""The documentation: blocks of code are run, links lead somewhere, and the reference is complete."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

import flask_llm_batches
from flask_llm_batches import testing
from flask_llm_batches.batch import LONGEST_ROW
from flask_llm_batches.cli import cli
from flask_llm_batches.config import Settings
from flask_llm_batches.core.asked import MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE
from flask_llm_batches.core.files import MAX_FILES
from flask_llm_batches.core.lists import MAX_PAGE
from flask_llm_batches.core.requests import LONGEST_REQUEST, MAX_CUSTOM_ID_LENGTH
from flask_llm_batches.principal import MAX_OWNER_LENGTH
from flask_llm_batches.web.openapi import document
from tests.documents import BLOCKS, PAGES, ROOT, Block

MARKS = [
    mark
    for path in Path(__file__).parent.glob("test_docs*.py")
    for mark in re.findall(r"""block\(["']([^"']+)["']\)""", path.read_text())
]
SHELL = [one for one in BLOCKS if one.language == "sh"]


def commands(script: str) -> Iterator[list[str]]:
    """Yield the commands of a script, without the comments."""
    for line in script.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def is_checked(words: list[str]) -> bool:
    """Check a command that names one of ours, and return whether it does."""
    match words:
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        case ["flask", "llm-batches", *arguments]:
            check_arguments(cli, arguments)
        case ["pip", "install", name]:
            project = (ROOT / "pyproject.toml").read_text()
            assert f'name = "{name}"' in project
        case _:
            return False
    return True


def check_arguments(command: click.Command, arguments: list[str]) -> None:
    """Parse the arguments of a command, as click does before it runs it."""
    if isinstance(command, click.Group):
        name, *rest = arguments
        check_arguments(command.commands[name], rest)
    else:
        command.make_context("flask", arguments)


@pytest.mark.parametrize("one", BLOCKS, ids=lambda one: f"{one.page}-{one.language}-{one.text[:20]}")
def test_every_block_is_run_by_a_test(one: Block) -> None:
    """No block stands untested. Blocks of commands that exist need no test of their own."""
    if not any(mark in one.text for mark in MARKS):
        assert one.language == "sh", one
        assert all(is_checked(words) for words in commands(one.text)), one


@pytest.mark.parametrize("one", SHELL, ids=lambda one: f"{one.page}-{one.text[:20]}")
def test_every_command_exists(one: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of ours have these names and options, also among others."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.jsonl").touch()  # which a command wants to be there
    for line in one.text.splitlines():
        if line.startswith(("make ", "flask llm-batches", "pip install")):
            is_checked(shlex.split(line, comments=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files that are linked exist, as they are seen in the repository."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_no_page_is_left_out() -> None:
    """Every page is in the contents of the site."""
    listed = (ROOT / "docs/index.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = str(page.relative_to(ROOT / "docs").with_suffix(""))
        assert name == "index" or f"\n{name}\n" in listed


def test_the_tests_of_promises_are_there() -> None:
    """Every test file that a promise names exists."""
    named = re.findall(r"`(tests/[\w/.]+)`", (ROOT / "docs/explanation/promises.md").read_text())
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name


def reference() -> ModuleType:
    """Return the module that writes the reference."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/_ext/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_setting() -> None:
    """The page of settings has a row for each, with its text and its default."""
    text = reference().generated((ROOT / "docs/reference/settings.md").read_text())
    for field in dataclasses.fields(Settings):
        assert re.search(rf"^\| `LLM_BATCHES_{field.name.upper()}` \| .+ \| .+ \|$", text, re.MULTILINE)
    assert "| `LLM_BATCHES_MAX_CONTENT_LENGTH` | 256 MiB |" in text
    assert "| `webhook_secret` | none |" in text


def test_the_reference_has_every_endpoint() -> None:
    """The page of endpoints has every path and method, every schema that it links to, and every code."""
    text = reference().generated((ROOT / "docs/reference/http.md").read_text())
    api = document("/v1/batches", "/v1/files")
    for path, methods in api["paths"].items():
        for method in methods:
            assert f"\n### {method.upper()} {path}\n" in text
    names = {name.lower() for name in api["components"]["schemas"]}
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= names | {"errors"}
    for code in ("invalid_model", "results_gone", "owner_limit_reached", "method_not_allowed"):
        assert f"| `{code}` |" in text


def test_the_limits_are_those_of_the_code() -> None:
    """The page of limits has the numbers of the constants."""
    text = (ROOT / "docs/explanation/limits.md").read_text()
    for what, limit in (
        ("requests of a batch", f"`LLM_BATCHES_MAX_REQUESTS`: {Settings().max_requests:,}"),
        ("the body of a create", "`LLM_BATCHES_MAX_CONTENT_LENGTH`: 256 MiB"),
        ("one request", f"{LONGEST_REQUEST >> 20} MiB"),
        ("one row of results", f"{LONGEST_ROW >> 20} MiB"),
        ("`custom_id`", f"{MAX_CUSTOM_ID_LENGTH} characters"),
        (
            "metadata",
            f"{MAX_METADATA} pairs, keys of {MAX_METADATA_KEY} and values of {MAX_METADATA_VALUE} characters",
        ),
        ("name of an owner", f"{MAX_OWNER_LENGTH} characters"),
        ("batches of a page, files of a page", f"{MAX_PAGE}, {MAX_FILES:,}"),
    ):
        assert f"| {what} | {limit} |" in text


@pytest.mark.parametrize("package", [flask_llm_batches, testing], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(package: ModuleType) -> None:
    """Whoever adds a public name adds it to the reference."""
    text = (ROOT / "docs/reference/python.md").read_text()
    for name in package.__all__:
        home = "errors" if name in ("LLMBatchesError", "ConfigurationError") else name
        assert re.search(rf"^\.\. \w+:: (?:[\w.]+\.)?{home}\b", text, re.MULTILINE), name
