"""The record can be browsed and searched, without a call to any provider."""

from __future__ import annotations

import pytest
from flask import Flask

from flask_llm_batches import EVERYONE, Batch, current_llm_batches
from flask_llm_batches.errors import UnknownProvider, ValidationFailed
from flask_llm_batches.testing import Simulator
from tests.hosts import requests


@pytest.fixture
def made(database_app: Flask, llm_provider: Simulator) -> list[Batch]:
    """Five batches of two owners, of which the second has ended."""
    with database_app.app_context():
        found = [
            current_llm_batches.create(
                owner=owner,
                model="openai:gpt-4o-mini",
                requests=requests(1),
                metadata={"job": f"night %_{number}", "Zweck": "Prüfung"},
            )
            for number, owner in enumerate(("ada", "bob", "ada", "bob", "ada"))
        ]
        llm_provider.batches[1].finish()
        current_llm_batches.retrieve(found[1].id, owner=EVERYONE)
    llm_provider.calls.clear()
    return found


def ids(**options: object) -> list[str]:
    return [one.id for one in current_llm_batches.browse(**{"owner": EVERYONE, **options}).batches]  # type: ignore[arg-type]


def test_pages_of_everyone(database_app: Flask, made: list[Batch], llm_provider: Simulator) -> None:
    """Pages are newest first, of all owners or of one, and no provider is called."""
    with database_app.app_context():
        first = current_llm_batches.browse(owner=EVERYONE, limit=3)
        assert [one.owner for one in first.batches] == ["ada", "bob", "ada"]
        assert first.has_more
        assert ids(limit=3, after=first.batches[-1].id) == [made[1].id, made[0].id]
        assert ids(owner="bob") == [made[3].id, made[1].id]
        assert ids(status="completed") == [made[1].id]
        assert ids(owner="bob", status=made[3].status, provider="openai") == [made[3].id]
        assert ids(provider="anthropic") == []
        with pytest.raises(ValidationFailed, match="after"):
            ids(after="batch_none")
        with pytest.raises(ValidationFailed, match="after"):
            ids(owner="bob", after=made[0].id)
    assert llm_provider.calls == []


def test_searching(database_app: Flask, made: list[Batch]) -> None:
    """A search finds an id, an owner, or a pair of metadata; another owner's batches are not found."""
    with database_app.app_context():
        assert ids(search=made[2].id) == [made[2].id]
        assert ids(search=made[2].id, owner="bob") == []
        assert ids(search="ada", status=made[0].status) == [made[4].id, made[2].id, made[0].id]
        assert ids(search="ada", owner="bob") == []
        assert ids(search="job=night %_3") == [made[3].id]
        assert ids(search="Zweck = Prüfung", limit=2) == [made[4].id, made[3].id]
        assert ids(search="Zweck=Prüfung", owner="bob", after=made[3].id) == [made[1].id]
        assert ids(search="job=night") == ids(search="night=job") == ids(search="=") == []
        assert ids(search="") == ids(search="no\none") == ids(search="x" * 1000) == []


def test_searching_for_any_text(database_app: Flask, made: list[Batch]) -> None:
    """Regression: with PostgreSQL, a NUL in a filter or a search was a 503."""
    odd = {'"Prüfung"\\': "a\0b"}
    with database_app.app_context():
        batch = current_llm_batches.create(
            owner="ada", model="openai:gpt-4o-mini", requests=requests(1), metadata=odd
        )
        assert ids(search='"Prüfung"\\=a\0b') == [batch.id]
        assert ids(search="a\0b=a\0b") == ids(provider="open\0ai") == []
        with pytest.raises(UnknownProvider):
            current_llm_batches.list(owner="ada", provider="open\0ai")
