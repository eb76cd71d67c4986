"""Imports run one way, and what is heavy is imported late."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import flask_llm_batches
from flask_llm_batches import testing

ROOT = Path(flask_llm_batches.__file__).parent

# Each may import those that stand after it, and only where it says so.
ALLOWED = {
    "extension": {"cli", "dashboard", "web", "engines", "core", "providers", "store"},
    "cli": {"web", "current", "core", "store"},
    "dashboard": {"web", "current", "core", "store"},
    "engines": {"current"},
    "web": {"current", "core", "store"},
    "current": {"core"},
    "core": {"providers", "store", "storage"},
    "providers": set(),
    "store": set(),
    "storage": set(),
    "testing": set(),
}
EVERYBODY = {
    *("batch", "config", "delivery", "errors", "fields", "jsonl", "log"),
    *("principal", "signals", "tracing", "untrusted"),
}

ONLY = {
    "any_llm": "providers",
    "asgiref": "providers",
    "openai": "providers",
    "anthropic": "providers",
    "mistralai": "providers",
    "google": "providers",
    "together": "providers",
    "sqlalchemy": "store",
    "obstore": "storage",
    "backports": "storage",
    "compression": "storage",
    "httpcore": "core",
    "opentelemetry": "tracing",
    "marshmallow": "web",
    "flask_swagger_ui": "web",
}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, TYPE_CHECKING or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    """A room imports only the rooms below it, and foreign libraries have one room each."""
    here = room(path)
    for module in imports(path):
        package, _, inner = module.partition(".")
        if package == "flask_llm_batches":
            there = inner.partition(".")[0]
            if here not in ("__init__", there):
                assert there in ALLOWED.get(here, set()) | EVERYBODY, f"{path} imports {module}"
        elif here not in (ONLY.get(package), "testing"):
            assert package not in ONLY, f"{path} imports {module}"


@pytest.mark.parametrize(
    "code",
    [
        "import flask_llm_batches",
        """
from flask.cli import main
sys.argv = ["flask", "--app", "tests.hosts:create_host", "routes"]
try: main()
except SystemExit: pass
""",
    ],
)
def test_any_llm_is_imported_late(code: str) -> None:
    """Neither ``import flask_llm_batches`` nor ``flask routes`` pays for any_llm."""
    script = f"import sys\n{code}\nassert 'flask_llm_batches' in sys.modules\nprint('any_llm' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"


def test_the_plugin_costs_nothing() -> None:
    """Loading the pytest plugin, as every run in its environment does, imports nothing but pytest."""
    script = (
        "import sys, pytest; before = set(sys.modules); import flask_llm_batches.testing.plugin; "
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    package = ["flask_llm_batches", "flask_llm_batches.testing", "flask_llm_batches.testing.plugin"]
    assert run.stdout.split() == package


@pytest.mark.parametrize("package", [flask_llm_batches, testing], ids=lambda package: package.__name__)
def test_public_names_are_there(package: ModuleType) -> None:
    """Every public name can be imported and listed, and no other is promised."""
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert hasattr(package, name)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = package.Nothing
