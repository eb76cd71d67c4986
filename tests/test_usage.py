"""Usage is recorded once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from flask import Flask
from flask.testing import FlaskClient
from genai_prices.data_snapshot import DataSnapshot, set_custom_snapshot
from genai_prices.types import ClauseEquals, ModelInfo, ModelPrice, Provider

from flask_llm_batches import UsageSum
from flask_llm_batches.core.counting import TokenCount
from flask_llm_batches.core.prices import cost
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.hosts import requests


def usage(tmp_path: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database:
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
        assert client.get(f"/v1/batches/{batch_id}/results").json
    create, results = usage(tmp_path)
    assert (create["event"], create["requests"], create["total_tokens"]) == ("create", 3, None)
    assert results["event"] == "results"
    assert (results["owner"], results["requested_by"]) == ("ada", "master-key")
    assert (results["provider"], results["model"], results["requests"]) == ("openai", "gpt-4o-mini", 3)
    tokens = ("prompt_tokens", "completion_tokens", "cached_tokens", "total_tokens")
    assert [results[name] for name in tokens] == [30, 15, 12, 45]


@pytest.mark.parametrize(
    ("stated", "tokens"),
    [
        ({"prompt_tokens": 3, "total_tokens": 3}, (3, 0, 0, 3)),
        ({"input_tokens": 3, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1}}, (3, 2, 1, 5)),
        ({"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": None}, (3, 2, 0, 5)),
        ({"prompt_tokens": None}, (0, 0, 0, 0)),
        ({"prompt_tokens": 2**63, "completion_tokens": -1}, (10**8, 0, 0, 10**8)),
        ({"input_tokens": 3, "cache_creation_input_tokens": 2, "cache_creation": "odd"}, (5, 0, 0, 5)),
        (None, (0, 0, 0, 0)),
        ("many", (0, 0, 0, 0)),
    ],
)
def test_tokens_are_counted(stated: object, tokens: tuple[int, ...]) -> None:
    """The usage of chat completions, responses and embeddings is understood."""
    count = TokenCount()
    count.add(msgspec.Raw(msgspec.json.encode({"usage": stated})))
    assert count.tokens == tokens


def test_a_usage_that_is_too_deep_counts_for_nothing() -> None:
    """It ends nobody's results: others are counted as before."""
    count = TokenCount()
    for nested in (2, 100_000):
        details = "[" * nested + "]" * nested
        text = f'{{"usage":{{"prompt_tokens":3,"cache_creation":{details}}}}}'
        count.add(msgspec.Raw(text.encode()))
    assert count.tokens == (3, 0, 0, 3)


AT = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp())


def counted(*usages: dict[str, Any], model: str | None = None) -> TokenCount:
    count = TokenCount()
    for usage in usages:
        count.add(msgspec.Raw(msgspec.json.encode({"model": model, "usage": usage})))
    return count


def used(into: int, out: int, cached: int = 0, written: int = 0, hour: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": into,
        "completion_tokens": out,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "cache_creation": {"ephemeral_1h_input_tokens": hour},
    }


def priced(*tokens_and_rates: Any) -> Decimal:
    pairs = zip(tokens_and_rates[::2], tokens_and_rates[1::2], strict=True)
    return sum((tokens * Decimal(rate) for tokens, rate in pairs), Decimal(0)) / 1_000_000


@pytest.mark.parametrize(
    ("kind", "model", "usage", "expected"),
    [
        # https://developers.openai.com/api/docs/pricing: batch, US dollars for a million tokens
        (
            "openai",
            "gpt-4o-mini-2024-07-18",
            used(4000, 2000),
            priced(4000, "0.075", 2000, "0.3"),
        ),
        ("openai", "gpt-5-mini", used(4000, 2000), priced(4000, "0.125", 2000, "1")),
        # https://platform.claude.com/docs/en/about-claude/pricing: batch, also of what goes through the cache
        (
            "anthropic",
            "claude-sonnet-4-5-20250929",
            used(4000, 2000, cached=1000, written=500),
            priced(2500, "1.5", 2000, "7.5", 1000, "0.15", 500, "1.875"),
        ),
        (
            "anthropic",
            "claude-sonnet-4-5",
            used(10_000, 0, written=10_000, hour=7000),
            priced(3000, "1.875", 7000, "3"),
        ),
        ("azureanthropic", "claude-sonnet-4-5", used(1000, 0), priced(1000, "1.5")),
    ],
)
def test_batches_cost_what_the_providers_say(
    kind: str, model: str, usage: dict[str, Any], expected: Decimal
) -> None:
    """A batch's price is that of the published batch rates."""
    assert cost(counted(*[usage] * 3, model=model).models, kind=kind, model="another", at=AT) == 3 * expected
    assert cost(counted(usage).models, kind=kind, model=model, at=AT) == expected


@pytest.mark.parametrize(
    ("kind", "model", "usage"),
    [
        (
            "openai",
            "gpt-4o-mini",
            used(10, 10, cached=5),
        ),  # a rate for cached input, but no batch rate for it
        ("openai", "gpt-99", used(10, 10)),
        ("mistral", "voxtral-mini-transcribe-realtime-3-0", used(10, 10)),
        ("neosantara", "gpt-4o-mini", used(10, 10)),
        ("azure", "gpt-4o-mini", used(10, 10)),  # OpenAI's model, whose batch rates are OpenAI's own
        ("anthropic", "claude-3-haiku", used(10, 10, written=5, hour=5)),
        ("openai", "gpt-4o-mini", {}),
        ("openai", "gpt-4o-mini", {"prompt_tokens": 10**400}),
        ("openai", "gpt-5-mini", used(10, 10, cached=50)),
    ],
)
def test_what_is_not_known_has_no_price(kind: str, model: str, usage: dict[str, Any]) -> None:
    """Without a batch rate of everything consumed the cost is None: never 0, and never the standard rate."""
    assert cost(counted(usage).models, kind=kind, model=model, at=AT) is None


def test_thirds_are_priced() -> None:
    """What requests consume on average need not be a finite decimal."""
    count = counted(*(used(2 * cached, 1, cached=cached, written=cached) for cached in (5, 5, 7)))
    expected = priced(17, "0.125", 17, "0.0125", 3, "1").quantize(Decimal("1e-9"))
    assert cost(count.models, kind="openai", model="gpt-5-mini", at=AT) == expected


def test_long_prompts_are_priced_one_by_one() -> None:
    """A tier holds for the requests whose own prompts are so long, not for many short ones together."""
    short, long = used(40_000, 0), used(250_000, 0)
    total = cost(counted(*[short] * 10, long).models, kind="anthropic", model="claude-sonnet-4-5", at=AT)
    assert total == priced(400_000, "1.5", 250_000, "3")
    edge = counted(used(200_000, 0), used(200_000, 0), used(200_000, 0), used(200_001, 0))
    total = cost(edge.models, kind="anthropic", model="claude-sonnet-4-5", at=AT)
    assert total == priced(600_000, "1.5", 200_001, "3")


def test_many_long_prompts_are_priced_at_once() -> None:
    """Pricing takes no longer for many long prompts than for some, and neither does keeping their lengths."""
    count = TokenCount()
    for number in range(10_000):
        usage = {"prompt_tokens": 100_000 + number % 7000, "completion_tokens": 1}
        count.add(msgspec.Raw(msgspec.json.encode({"usage": usage})))
    (bands,) = count.models.values()
    assert len(bands) == 8
    total = cost(count.models, kind="anthropic", model="claude-sonnet-4-5", at=AT)
    assert total == priced(count.tokens.prompt, "1.5", 10_000, "7.5")


def test_made_up_models_take_no_memory() -> None:
    """A provider that names another model in each row fills no memory, and the batch has no price."""
    count = TokenCount()
    for number in range(1000):
        count.add(msgspec.Raw(msgspec.json.encode({"model": f"gpt-{number}", "usage": used(10, 10)})))
    count.add(msgspec.Raw(msgspec.json.encode({"model": "g" * 256, "usage": used(10, 10)})))
    assert len(count.models) <= 11
    assert count.tokens.prompt == 10_010
    assert cost(count.models, kind="openai", model="gpt-4o-mini", at=AT) is None


def test_a_price_list_that_fails_costs_no_results(
    ada: FlaskClient, llm_provider: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the price list raises, results are there and accounted for, without a price; it is logged."""
    broken = ModelInfo("gpt-4o-mini", ClauseEquals("gpt-4o-mini"), prices=ModelPrice(input_mtok=Decimal(-1)))
    provider = Provider("openai", "OpenAI", "", models=[broken])
    set_custom_snapshot(DataSnapshot([provider], from_auto_update=False))
    try:
        spend(ada, llm_provider, 2)
    finally:
        set_custom_snapshot(None)
    assert [(row["event"], row["requests"], row["cost"]) for row in usage(tmp_path)] == [
        ("create", 2, None),
        ("results", 2, None),
    ]
    assert "no price of 'gpt-4o-mini' at openai" in caplog.text
    assert "ValueError" in caplog.text


def test_what_an_hour_in_the_cache_costs(
    make_host: MakeHost, llm_provider: Simulator, tmp_path: Path
) -> None:
    """Regression: Anthropic's cache writes for an hour were priced as if they were for five minutes."""
    ada = client_of(make_host(database=tmp_path / "host.sqlite3", providers=llm_provider.providers), "ada")
    written = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 10_000}
    llm_provider.respond = lambda _: {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [{"type": "text", "text": "Hello."}],
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 0,
            "output_tokens": 0,
            "cache_creation_input_tokens": 10_000,
            "cache_creation": written,
        },
    }
    for endpoint in ("/v1/chat/completions", "/v1/messages"):
        body = {
            "custom_id": "r1",
            "body": {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 9},
        }
        made = create_batch(ada, model="anthropic:claude-sonnet-4-5", requests=[body], endpoint=endpoint)
        llm_provider.batches[-1].finish()
        (row,) = ada.get(f"/v1/batches/{made}/results").get_json()["results"]
        assert row["result"]["usage"]["cache_creation"] == written
    costs = [row["cost"] for row in usage(tmp_path) if row["event"] == "results"]
    assert costs == [30_000_000, 30_000_000]  # 0.03 dollars


def test_a_batch_of_two_models_has_the_price_of_both() -> None:
    """Rows name their models; one whose price is not known leaves the whole without."""
    count = counted(used(1000, 0), model="gpt-4o-mini")
    count.add(msgspec.Raw(msgspec.json.encode({"model": "gpt-5-mini", "usage": used(1000, 0)})))
    assert cost(count.models, kind="openai", model="x", at=AT) == priced(1000, "0.075", 1000, "0.125")
    count.add(msgspec.Raw(msgspec.json.encode({"model": "gpt-99", "usage": used(1000, 0)})))
    assert cost(count.models, kind="openai", model="x", at=AT) is None


def spend(client: FlaskClient, llm_provider: Simulator, count: int, **fields: Any) -> None:
    """Make a batch of which each request uses 1,000 and 1,000 tokens, and fetch its results."""
    llm_provider.respond = lambda line: {"model": line["body"]["model"], "usage": used(1000, 1000)}
    batch_id = create_batch(client, count, **fields)
    llm_provider.batches[-1].finish()
    assert client.get(f"/v1/batches/{batch_id}/results").json


def test_usage_can_be_asked_for(
    app: Flask, ada: FlaskClient, admin: FlaskClient, llm_provider: Simulator
) -> None:
    """Callers see their own sums, an admin everybody's; grouped or in one; as JSON or CSV."""
    spend(ada, llm_provider, 2)
    spend(ada, llm_provider, 1, model="openai:gpt-99")
    spend(client_of(app, "bob"), llm_provider, 4)
    create_batch(ada, 5)

    (mine,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert mine == {
        "group": None,
        "batches": 3,
        "requests": 8,
        "prompt_tokens": 3000,
        "completion_tokens": 3000,
        "cached_tokens": 0,
        "total_tokens": 6000,
        "cost": "0.00075",
        "unpriced": 1,
        "unfetched": 0,
    }
    everybody = admin.get("/v1/batches/usage?group_by=owner").get_json()
    assert (everybody["object"], everybody["group_by"]) == ("list", "owner")
    assert [(row["group"], row["requests"], row["cost"]) for row in everybody["data"]] == [
        ("ada", 8, "0.00075"),
        ("bob", 4, "0.0015"),
    ]
    models = ada.get("/v1/batches/usage?group_by=model").get_json()["data"]
    assert [(row["group"], row["batches"], row["unpriced"]) for row in models] == [
        ("gpt-4o-mini", 2, 0),
        ("gpt-99", 1, 1),
    ]
    text = ada.get("/v1/batches/usage?group_by=provider", headers={"Accept": "text/csv"}).text
    assert text.replace('"', "").splitlines() == [
        ",".join(("provider", *UsageSum._fields[1:])),
        "openai,3,8,3000,3000,0,6000,0.00075,1,0",
    ]
    printed = app.test_cli_runner().invoke(args=["llm-batches", "usage", "--group-by", "owner"])
    assert [line.split(",")[0] for line in printed.output.splitlines()] == ['"owner"', '"ada"', '"bob"']


def test_what_has_no_price_costs_nothing_that_is_known(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Regression: a batch without a price was said to cost 0. It is null, and empty in CSV."""
    spend(ada, llm_provider, 1, model="openai:gpt-99")
    (row,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert (row["cost"], row["unpriced"], row["total_tokens"]) == (None, 1, 2000)
    text = ada.get("/v1/batches/usage", headers={"Accept": "text/csv"}).text
    assert text.replace('"', "").splitlines()[1] == "1,1,1000,1000,0,2000,,1,0"
    spend(ada, llm_provider, 1)
    assert ada.get("/v1/batches/usage").get_json()["data"][0]["cost"] == "0.000375"


def test_usage_by_batch(ada: FlaskClient, admin: FlaskClient, llm_provider: Simulator) -> None:
    """``group_by=batch`` has a sum for every batch, the oldest first, by the provider's id."""
    spend(ada, llm_provider, 2)
    spend(ada, llm_provider, 1, model="openai:gpt-99")
    create_batch(ada, 5)
    rows = admin.get("/v1/batches/usage?group_by=batch").get_json()["data"]
    assert [(row["group"], row["batches"], row["requests"], row["cost"]) for row in rows] == [
        (llm_provider.batches[0].id, 1, 2, "0.00075"),
        (llm_provider.batches[1].id, 1, 1, None),
        (llm_provider.batches[2].id, 1, 5, None),
    ]


def test_what_nobody_has_fetched_is_counted(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """A batch that is known to have ended is ``unfetched`` until its results were read to the end."""

    def unfetched() -> list[int]:
        sums = ada.get("/v1/batches/usage?group_by=model").get_json()["data"]
        return [row["unfetched"] for row in sums]

    done, expired, failed, running = (create_batch(ada, model=f"openai:m{number}") for number in range(4))
    assert unfetched() == [0, 0, 0, 0]
    llm_provider.batches[0].finish()
    llm_provider.batches[1].expire()
    llm_provider.batches[2].fail("too bad")
    for batch_id in (done, expired, failed, running):
        ada.get(f"/v1/batches/{batch_id}")
    assert unfetched() == [1, 1, 0, 0]
    assert client_of(app, None).get("/v1/batches/usage").get_json()["data"][0]["unfetched"] == 2
    assert ada.get(f"/v1/batches/{expired}/results").get_json()
    assert unfetched() == [1, 0, 0, 0]


def test_names_are_no_formulas(ada: FlaskClient, llm_provider: Simulator) -> None:
    """In CSV, which spreadsheets open, a name of a caller's choice is text; a refused create has no line."""
    create_batch(ada, 1, model="openai:=1+1")
    llm_provider.fail_next(400, on="POST /batches")
    ada.post("/v1/batches", json={"model": "openai:wrong", "requests": requests(1)})
    query = "/v1/batches/usage?group_by=model"
    assert [line[:8] for line in ada.get(query, headers={"Accept": "text/csv"}).text.splitlines()] == [
        '"model",',
        '"\'=1+1",',
    ]
    assert [row["group"] for row in ada.get(query).get_json()["data"]] == ["=1+1"]


def test_usage_of_a_time(app: Flask, ada: FlaskClient, llm_provider: Simulator, tmp_path: Path) -> None:
    """``since`` is part of the time and ``until`` is not; both are days, times or Unix seconds, in UTC."""
    spend(ada, llm_provider, 1)
    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database, database:
        database.execute("UPDATE llm_batches_usage SET created_at = ?", [AT])

    def requests_of(query: str) -> int:
        (row,) = ada.get(f"/v1/batches/usage?{query}").get_json()["data"]
        return int(row["requests"])

    assert [row["group"] for row in ada.get("/v1/batches/usage?group_by=day").get_json()["data"]] == [
        "2026-11-01"
    ]
    for moment in ("2026-11-01", "2026-11-01T00:00:00Z", "2026-11-01T01:00:00%2B01:00", str(AT)):
        assert (requests_of(f"since={moment}"), requests_of(f"until={moment}")) == (1, 0)
    assert requests_of("since=2026-11-01T00:00:01") == 0
    for wrong in ("since=yesterday", "until=2026-13-01", "group_by=colour", "since=999999999999999"):
        assert ada.get(f"/v1/batches/usage?{wrong}").status_code == 422
    refused = app.test_cli_runner().invoke(args=["llm-batches", "usage", "--since", "yesterday"])
    assert refused.exit_code == 2
    assert "since: Not a day" in refused.output


def test_the_creator_pays(admin: FlaskClient, llm_provider: Simulator, tmp_path: Path) -> None:
    """What an admin makes for somebody is that somebody's usage, and says who asked."""
    create_batch(admin, user="ada")
    (row,) = usage(tmp_path)
    assert (row["owner"], row["requested_by"]) == ("ada", "master-key")


def test_what_the_provider_forgets_is_remembered(
    ada: FlaskClient, llm_provider: Simulator, tmp_path: Path
) -> None:
    """The metadata of a batch comes from the record if the provider does not return them."""
    batch_id = create_batch(ada, metadata={"team": "search"})
    llm_provider.batches[0].metadata = None
    for _ in range(2):
        assert ada.get(f"/v1/batches/{batch_id}").get_json()["metadata"] == {"team": "search"}
    assert (
        client_of(ada.application, "ada").get("/v1/batches").get_json()["data"][0]["model"] == "gpt-4o-mini"
    )
