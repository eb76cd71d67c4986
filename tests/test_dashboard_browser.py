"""The dashboard in a real browser: every action, both roles, two widths, light and dark."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from playwright.sync_api import Page

from flask_llm_batches import current_llm_batches
from flask_llm_batches.testing import Simulator
from tests.browser import chromium, complaints
from tests.conftest import MakeHost
from tests.databases import query
from tests.hosts import requests
from tests.servers import serving

pytestmark = pytest.mark.slow

WIDTHS = (390, 1280)
ROLES = {"ada": "ada", "admin": "the-admin"}

Open = Callable[..., Page]


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, tmp_path: Path) -> Flask:
    """Make a host with batches of two owners in every state."""
    path = tmp_path / "host.sqlite3"
    app = make_host(
        database=path,
        dashboard="/batches",
        webhooks={"crm": {"url": "https://127.0.0.1:1/", "secret": "whsec_" + "A" * 32, "every": True}},
    )

    def refuse(rows: Any, _batch: Any) -> None:
        for row in rows:
            if row.custom_id == "r1":
                raise ValueError("there is no such ticket")

    def respond(line: Any) -> Any:
        number = int(line["custom_id"][1:])
        if number % 5 == 4:
            return 400, {"error": {"message": f"the prompt {number} is too long", "code": "invalid_value"}}
        return {
            "id": "x",
            "choices": [{"message": {"role": "assistant", "content": "Hello " * 20}}],
            "usage": {"prompt_tokens": 4000 + number, "completion_tokens": 1500},
        }

    llm_provider.respond = respond
    with app.app_context():
        current_llm_batches.handlers.register("label-tickets", refuse, http=True)
        for owner in ("ada", "bob"):
            for count in (20, 300, 3):
                current_llm_batches.create(
                    owner=owner,
                    model="openai:gpt-4o-mini",
                    requests=requests(count),
                    metadata={"team": "search", "run": "nightly of the third week"},
                    on_results="label-tickets",
                )
        current_llm_batches.create(
            owner="ada",
            requests=[{"custom_id": f"r{n}", "body": {"model": f"openai:gpt-{n % 2}"}} for n in range(8)],
        )
        for number in (0, 3):
            llm_provider.batches[number].finish()
        llm_provider.batches[1].fail("Enqueued token limit reached for gpt-4o-mini", code="token_limit")
        for owner in ("ada", "bob"):
            current_llm_batches.list(owner=owner)
        for _ in range(5):
            query(f"sqlite:///{path}", "UPDATE llm_batches_task SET due_at = 0 WHERE step != 'expire'")
            current_llm_batches.tick()
        spread = "UPDATE llm_batches_usage SET created_at = created_at - 86400 * (id % 9)"
        query(f"sqlite:///{path}", spread)
    return app


@pytest.fixture
def url(app: Flask) -> Iterator[str]:
    with serving(app) as address:
        yield f"{address}/batches/"


@pytest.fixture
def open_page(url: str) -> Iterator[Open]:
    """Open pages as a role. None may log an error, as a violation of the policy is."""
    pages: list[tuple[list[str], str]] = []
    with chromium() as browser:

        def open_page(
            role: str, path: str = "", *, width: int = 1280, dark: bool = False, refused: str = "nothing"
        ) -> Page:
            context = browser.new_context(
                base_url=url,
                viewport={"width": width, "height": 900},
                color_scheme="dark" if dark else "light",
            )
            context.add_cookies([{"name": "user", "value": ROLES[role], "url": url}])
            page = context.new_page()
            pages.append((complaints(page), refused))
            page.goto(path, wait_until="networkidle")
            return page

        yield open_page
    assert [text for found, refused in pages for text in found if refused not in text] == []


def ids(app: Flask, owner: str = "ada") -> dict[str, str]:
    """Return the id of a batch of an owner for each status."""
    with app.app_context():
        return {one.status: one.id for one in current_llm_batches.browse(owner=owner, limit=100).batches}


def paths(app: Flask, role: str) -> dict[str, str]:
    of = ids(app)
    pages = {
        "overview": "",
        "list": "list",
        "batch": f"batch?id={of['completed']}&provider=openai",
        "request": f"batch?id={of['completed']}&provider=openai&custom_id=r4",
        "failed": f"batch?id={of['failed']}&provider=openai",
        "running": f"batch?id={of['in_progress']}&provider=openai",
        "usage": "usage",
        "missing": "batch?id=nothing&provider=openai",
    }
    return pages | ({"keys": "keys", "health": "health"} if role == "admin" else {"forbidden": "keys"})


@pytest.mark.parametrize("role", ROLES)
def test_pages_are_accessible(app: Flask, open_page: Open, role: str, tmp_path: Path) -> None:
    """On every page, in light and dark, at two widths, axe finds nothing serious, and nothing sticks out."""
    from axe_playwright_python.sync_playwright import Axe

    found = []
    for name, path in paths(app, role).items():
        if name in ("missing", "forbidden"):
            continue
        for width in WIDTHS:
            for dark in (False, True):
                page = open_page(role, path, width=width, dark=dark)
                results = Axe().run(page).response
                found += [
                    (name, width, dark, one["id"], one["impact"], [node["html"] for node in one["nodes"]])
                    for one in results["violations"]
                    if one["impact"] in ("serious", "critical")
                ]
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, f"{name} is {wide} wide at {width}"
                shade = "dark" if dark else "light"
                page.screenshot(path=tmp_path / f"{role}-{name}-{width}-{shade}.png", full_page=True)
                page.context.close()
    assert found == []


def test_an_owner_follows_a_batch(app: Flask, open_page: Open, llm_provider: Simulator) -> None:
    """A running batch is loaded again by itself, without a jump; when it has ended, it has its results."""
    page = open_page("ada", paths(app, "ada")["running"])
    before = page.locator("#exchange").bounding_box()
    ran = urlsplit(page.url).query.partition("id=")[2].partition("&")[0]
    batch = next(one for one in llm_provider.batches if one.id == ran)
    assert page.get_by_text("Cancel", exact=True).is_visible()
    with page.expect_response(lambda response: "seen=" in response.url and response.status == 204):
        pass
    assert page.locator("#exchange").bounding_box() == before
    batch.finish()
    page.get_by_role("link", name="Download results").wait_for(timeout=15_000)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download results").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 3


def test_the_overview_is_loaded_again(app: Flask, open_page: Open, llm_provider: Simulator) -> None:
    """What has changed takes its place without a jump or a new page, and a screen reader hears of it."""
    page = open_page("ada")
    page.evaluate("window.same = true")
    before = page.locator(".plot").bounding_box()
    batch_id = ids(app)["in_progress"]
    next(one for one in llm_provider.batches if one.id == batch_id).finish()
    with app.app_context():
        current_llm_batches.retrieve(batch_id, owner="ada")
    page.locator("#news", has_text="1 running").wait_for(state="attached", timeout=15_000)
    assert page.locator(".figures dd").first.inner_text() == "1"
    assert page.locator(".plot").bounding_box() == before
    assert page.evaluate("window.same")


@pytest.mark.parametrize("role", ROLES)
def test_a_batch_is_cancelled_and_retried(app: Flask, open_page: Open, role: str) -> None:
    """Each action is a button, and the page says what has come of it; cancelling asks first."""
    page = open_page(role, paths(app, role)["running"])
    assert not page.get_by_role("button", name="Cancel this batch").is_visible()
    page.get_by_text("Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel this batch").click()
    assert "asked to cancel" in page.get_by_role("status").first.inner_text()
    page.goto(paths(app, role)["batch"])
    page.get_by_role("button", name="Retry what failed").click()
    assert "of the requests that failed" in page.get_by_role("status").first.inner_text()
    assert page.get_by_text("Retry of").is_visible()
    page.goto(paths(app, role)["batch"])
    assert page.get_by_role("button", name="Deliver again").count() == (role == "admin")


def test_failures_lead_to_a_request(app: Flask, open_page: Open) -> None:
    """Failures are loaded after the page, and a sample of them leads to its request and its error."""
    page = open_page("ada", paths(app, "ada")["batch"])
    link = page.locator("#failures li a").first
    custom_id = link.inner_text()
    link.click()
    page.wait_for_load_state("networkidle")
    assert f"say {custom_id[1:]}" in page.get_by_role("region", name="Request", exact=True).inner_text()
    assert "is too long" in page.get_by_role("region", name="Error").inner_text()


def test_a_list_is_searched(app: Flask, open_page: Open) -> None:
    """An owner finds a batch by its metadata, and an admin the batches of an owner."""
    page = open_page("ada", "list")
    page.get_by_label("Search").fill("team=search")
    page.get_by_role("button", name="Show").click()
    assert page.locator("tbody tr").count() == 3
    admin = open_page("admin", "list")
    admin.get_by_label("Owner").fill("bob")
    admin.get_by_label("Status").select_option("completed")
    admin.get_by_role("button", name="Show").click()
    assert admin.locator("tbody tr").count() == 1
    admin.locator("tbody a").click()
    assert admin.get_by_text("nightly of the third week").is_visible()


def test_an_admin_repairs_deliveries(app: Flask, open_page: Open) -> None:
    """An admin delivers rows and sends webhooks again."""
    page = open_page("admin", paths(app, "admin")["batch"])
    page.get_by_role("button", name="Deliver again").click()
    assert "delivered again" in page.get_by_role("status").first.inner_text()
    page.get_by_role("button", name="Send webhooks again").click()
    assert "due now" in page.get_by_role("status").first.inner_text()
    with app.app_context():
        assert min(one.attempts for one in current_llm_batches.sent_webhooks()) == 0


def test_an_admin_makes_and_revokes_a_key(app: Flask, open_page: Open) -> None:
    """A key is made and shown once, and revoked."""
    page = open_page("admin", "keys")
    page.get_by_label("Owner", exact=True).fill("nightly")
    page.get_by_role("button", name="Make a key").click()
    assert re.fullmatch(r"llmb_[A-Za-z0-9_-]{43}", page.locator("code.key").inner_text())
    page.get_by_role("button", name=re.compile("^Revoke")).click()
    assert "revoked" in page.get_by_role("status").first.inner_text()
    assert page.get_by_role("cell", name="revoked").is_visible()
    with app.app_context():
        assert [key.revoked_at is None for key in current_llm_batches.keys.list()] == [False]


def test_usage_is_downloaded(open_page: Open) -> None:
    """Usage is shown by what is chosen, and downloaded as shown."""
    page = open_page("admin", "usage")
    page.get_by_role("combobox", name="By").select_option("owner")
    page.get_by_role("button", name="Show").click()
    assert page.get_by_role("rowheader", name="bob").is_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert '"owner","batches"' in Path(download.value.path()).read_text()


def test_the_keyboard_is_enough(app: Flask, open_page: Open) -> None:
    """The first stop is a link to the content, and every stop is seen."""
    page = open_page("ada", "list")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").evaluate("link => link.getBoundingClientRect().x") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(8):
        page.keyboard.press("Tab")
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none", page.evaluate("document.activeElement.outerHTML")


def test_another_site_cannot_act(app: Flask, url: str, open_page: Open) -> None:
    """A form of another site, which the browser sends with the credentials, is refused."""
    page = open_page("ada", refused="403 (FORBIDDEN)")
    page.set_extra_http_headers({"X-User": "ada"})  # as HTTP Basic is sent, whatever SameSite says
    form = f'<form method="post" action="{url}{paths(app, "ada")["running"]}">'
    body = f'{form}<input name="action" value="cancel"><button>Win</button></form>'
    page.route("http://evil.example/", lambda route: route.fulfill(content_type="text/html", body=body))
    page.goto("http://evil.example/")
    with page.expect_response(lambda response: "/batches/batch" in response.url) as refused:
        page.get_by_role("button", name="Win").click()
    assert refused.value.status == 403
    assert "not on a page of this site" in page.get_by_role("alert").inner_text()
    assert "cancelling" not in ids(app)
