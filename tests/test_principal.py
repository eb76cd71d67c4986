"""Every call names the owner of its batches, and an invalid owner sees nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_llm_batches import EVERYONE, Principal, Service, current_llm_batches
from flask_llm_batches.errors import BatchNotFound, ValidationFailed
from flask_llm_batches.testing import Simulator
from tests.hosts import requests

ASKED: dict[str, Any] = {"model": "openai:m", "requests": requests(1)}

Call = Callable[[Service, str, Any], object]

READS: list[Call] = [
    lambda service, batch_id, owner: service.retrieve(batch_id, owner=owner),
    lambda service, batch_id, owner: service.cancel(batch_id, owner=owner),
    lambda service, batch_id, owner: service.results(batch_id, owner=owner),
    lambda service, _, owner: service.list(owner=owner, provider="openai"),
    lambda service, _, owner: service.usage(owner=owner),
]
MAKES: list[Call] = [
    lambda service, _, owner: service.create(owner=owner, **ASKED),
    lambda service, _, owner: service.check(owner=owner, **ASKED),
]


@pytest.fixture
def batch_id(app: Flask, llm_provider: Simulator) -> str:
    with app.app_context():
        batch = current_llm_batches.create(owner="bob", **ASKED)
    llm_provider.calls.clear()
    return batch.id


@pytest.mark.parametrize("call", READS + MAKES)
@pytest.mark.parametrize(
    ("owner", "error"), [(None, TypeError), ("", ValueError), (7, ValueError), ("\ud800", ValueError)]
)
def test_an_owner_who_is_nobody_is_an_error(
    app: Flask, llm_provider: Simulator, batch_id: str, call: Call, owner: Any, error: type[Exception]
) -> None:
    """Regression: a call for a user without an id was an admin's, and cancelled a batch of somebody else."""
    with app.app_context(), pytest.raises(error, match="owner"):
        call(current_llm_batches, batch_id, owner)
    assert llm_provider.calls == []


@pytest.mark.parametrize("call", MAKES)
def test_a_batch_has_one_owner(app: Flask, llm_provider: Simulator, call: Call) -> None:
    """A batch cannot be made for everyone."""
    with app.app_context(), pytest.raises(TypeError, match="a batch has one owner"):
        call(current_llm_batches, "", EVERYONE)
    assert llm_provider.calls == []


@pytest.mark.parametrize("owner", [EVERYONE, "bob", Principal("bob"), Principal("root", admin=True)])
def test_who_may_see_a_batch(app: Flask, llm_provider: Simulator, batch_id: str, owner: Any) -> None:
    """``EVERYONE`` and an admin see the batches of all owners, an owner and its ``Principal`` theirs."""
    with app.app_context():
        assert current_llm_batches.retrieve(batch_id, owner=owner).id == batch_id
        assert [row.requests for row in current_llm_batches.usage(owner=owner)] == [1]
        llm_provider.batches[0].finish()
        assert len(list(current_llm_batches.results(batch_id, owner=owner))) == 1


@pytest.mark.parametrize("owner", ["ada", Principal("ada"), "EVERYONE", "None"])
def test_who_may_not(app: Flask, llm_provider: Simulator, batch_id: str, owner: Any) -> None:
    """No name of an owner stands for everyone, however it is spelled."""
    with app.app_context():
        for call in READS[:3]:
            with pytest.raises((BatchNotFound, ValidationFailed)):
                call(current_llm_batches, batch_id, owner)
        assert current_llm_batches.list(owner=owner, provider="openai").batches == []
        assert [row.requests for row in current_llm_batches.usage(owner=owner)] == [0]
    assert llm_provider.calls == []


def test_a_batch_of_a_principal_is_its_owners(app: Flask, llm_provider: Simulator) -> None:
    """A create for an admin makes a batch of the admin's own."""
    with app.app_context():
        batch = current_llm_batches.create(owner=Principal("root", admin=True), **ASKED)
        assert current_llm_batches.retrieve(batch.id, owner="root").id == batch.id
