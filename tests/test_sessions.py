"""No connection of the host's ``db.session`` is held during a provider call, and its changes stay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask, Response
from flask.typing import ResponseReturnValue
from flask_login import LoginManager, UserMixin, current_user, login_user
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String, create_engine, text, update
from sqlalchemy.orm import Mapped, mapped_column, scoped_session, sessionmaker

from flask_llm_batches import LLMBatches, Principal, current_llm_batches
from flask_llm_batches.errors import LLMBatchesError, RecordUnavailable
from flask_llm_batches.store.sessions import watch
from flask_llm_batches.testing import Simulator
from tests.conftest import create_batch
from tests.databases import query
from tests.hosts import MASTER_KEY, dispose, requests
from tests.servers import serving


@dataclass
class Shop:
    """A host with Flask-Login and a user.

    Attributes:
        User: Its users.
        before: Runs in the authenticator when the user is known.
        after: Runs after every request.
    """

    app: Flask
    db: SQLAlchemy
    llm_batches: LLMBatches
    User: Any
    before: Callable[[], object] = bool
    after: Callable[[], object] = bool

    @property
    def session(self) -> Any:
        return self.db.session()

    def seen(self, url: str) -> int:
        """Return how often the user was seen, as everybody can see by now."""
        return int(query(url, "SELECT seen FROM shop_user")[0][0])


@pytest.fixture
def engine_options() -> dict[str, Any]:
    return {}


ONE_CONNECTION = pytest.mark.parametrize(
    "engine_options", [{"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}], ids=["one connection"]
)


@pytest.fixture
def shop(
    database_url: str, engine_options: dict[str, Any], llm_provider: Simulator, tmp_path: Path
) -> Iterator[Shop]:
    app = Flask(__name__, instance_path=str(tmp_path))
    app.secret_key = "secret"
    app.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
    app.config["LLM_BATCHES_MASTER_KEY"] = MASTER_KEY
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options
    db = SQLAlchemy(app)
    model: Any = db.Model

    class User(UserMixin, model):  # type: ignore[misc]
        __tablename__ = "shop_user"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(80))
        seen: Mapped[int] = mapped_column(default=0)

    shop = Shop(app, db, LLMBatches(db=db), User)
    LoginManager(app).user_loader(lambda user_id: db.session.get(User, int(user_id)))

    @shop.llm_batches.authenticator
    def principal() -> Principal | None:
        if not current_user.is_authenticated:
            return None
        shop.before()
        return Principal(owner=str(current_user.id))

    @app.post("/login")
    def log_in() -> str:
        login_user(db.session.execute(db.select(User)).scalar_one())
        return "welcome"

    @app.after_request
    def say_who(response: Response) -> Response:
        if current_user.is_authenticated:
            response.headers["X-Name"] = current_user.name
            shop.after()
        return response

    shop.llm_batches.init_app(app)
    with app.app_context():
        db.create_all()
        db.session.add(User(name="Ada"))
        db.session.commit()
    yield shop
    dispose(app)


@pytest.fixture
def ada(shop: Shop) -> Any:
    client = shop.app.test_client()
    client.post("/login")
    return client


@ONE_CONNECTION
def test_no_connection_waits_for_a_provider(shop: Shop, llm_provider: Simulator) -> None:
    """With one connection, 16 calls that take a second at the provider take little more than a second."""
    with (
        serving(shop.app) as url,
        httpx.Client(base_url=url, timeout=30) as http,
        ThreadPoolExecutor(16) as pool,
    ):
        http.post("/login")
        body = {"model": "openai:m", "requests": requests(1)}
        paths = [f"/v1/batches/{http.post('/v1/batches', json=body).json()['id']}" for _ in range(16)]
        for _ in paths:
            llm_provider.delay_next(1.0, on="GET /batches")
        began = time.monotonic()
        answers = list(pool.map(http.get, paths))
        took = time.monotonic() - began
    assert {(answer.status_code, answer.headers["X-Name"]) for answer in answers} == {(200, "Ada")}
    assert took < 3


def test_every_db_is_watched() -> None:
    """Regression: a new db at the memory address of an old one was not watched."""
    kept = []
    for _ in range(100):
        db = SQLAlchemy()
        watch(db.session)
        session = db.session.session_factory()
        assert session.dispatch.after_begin
        kept.append(type(session))
        del db, session


def test_listeners_do_not_pile_up(tmp_path: Path) -> None:
    """Regression: on a connection to which a host binds its sessions, each transaction left a listener."""
    engine = create_engine(f"sqlite:///{tmp_path / 'bound.sqlite3'}")
    with engine.connect() as connection:
        sessions = scoped_session(sessionmaker(bind=connection))
        watch(sessions)
        for _ in range(20):
            sessions.remove()
            session = sessions()
            for _ in range(3):
                session.execute(text("SELECT 1"))
                with session.begin_nested():
                    session.execute(text("SELECT 2"))
                assert len(connection.dispatch.before_cursor_execute) == 1
                session.rollback()
        assert len(connection.dispatch.before_cursor_execute) == 0
    engine.dispose()


@ONE_CONNECTION
def test_a_key_is_looked_up_on_the_one_connection(shop: Shop) -> None:
    """What the host read before it did not know the caller is over when our keys are looked up."""
    with shop.app.app_context():
        key = current_llm_batches.keys.create(owner="bob")
    shop.app.before_request(lambda: shop.session.execute(text("SELECT 1")) and None)
    assert shop.app.test_client().get("/v1/batches", headers={"X-API-Key": key}).status_code == 200


def test_the_hosts_objects_can_be_used_afterwards(shop: Shop, ada: Any, llm_provider: Simulator) -> None:
    """The host's error handler and its after_request have the user, as fresh as the database."""

    @shop.llm_batches.error_handler
    def say(error: LLMBatchesError, response: Response) -> ResponseReturnValue:
        return {"sorry": current_user.name, "code": error.code}, error.status

    batch_id = create_batch(ada)
    llm_provider.fail_next(on="GET /batches")
    failed = ada.get(f"/v1/batches/{batch_id}")
    assert (failed.status_code, failed.headers["X-Name"]) == (502, "Ada")
    assert failed.get_json() == {"sorry": "Ada", "code": "provider_error"}


def test_changes_of_the_hosts_are_left_alone(database_url: str, shop: Shop, ada: Any) -> None:
    """What the authenticator changed, by whatever means, is the host's to commit after the request."""

    def assign() -> None:
        current_user.seen += 1

    def flush() -> None:
        current_user.seen += 1
        shop.session.flush()

    def execute() -> None:
        shop.session.execute(update(shop.User).values(seen=shop.User.seen + 1))

    def say() -> None:
        shop.session.connection().exec_driver_sql("/* seen */ UPDATE shop_user SET seen = seen + 1")

    def commit() -> None:
        shop.session.commit()

    shop.after = commit
    for times, shop.before in enumerate((assign, flush, execute, say), 1):
        assert ada.get("/v1/batches").status_code == 200
        assert shop.seen(database_url) == times


@pytest.mark.parametrize(
    ("statement", "is_over"),
    [
        ("SELECT seen FROM shop_user", True),
        ("\n select seen from shop_user where name = 'UPDATE'", True),
        ("SELECT count(*), max(seen) FROM shop_user WHERE name IN ('a') AND (seen = 1)", True),
        ("SELECT abs(seen) FROM shop_user", False),  # a function of theirs may change something
        ("WITH few AS (SELECT 1) SELECT * FROM few", False),
        ("SELECT seen FROM shop_user /* FOR UPDATE */", False),
        ("UPDATE shop_user SET seen = 1 WHERE 1 = 0", False),
    ],
)
@pytest.mark.parametrize("make_database", ["sqlite"], indirect=True)
def test_only_what_has_read_is_ended(shop: Shop, ada: Any, statement: str, is_over: bool) -> None:
    """A transaction of SELECTs is ended; one in which anything else was said is not, whatever that did."""
    open_after = []
    shop.before = lambda: shop.session.execute(text(statement))

    @shop.llm_batches.error_handler
    def look(_error: LLMBatchesError, response: Response) -> Response:
        open_after.append(shop.session.in_transaction())
        return response

    assert ada.get("/v1/batches?limit=0").status_code == 422
    assert open_after == [not is_over]


def test_a_transaction_that_the_host_began_is_left_alone(shop: Shop, ada: Any) -> None:
    """A transaction that the host began with ``begin()`` is left alone, even if nothing was changed."""
    begun: list[Any] = []

    def begin() -> None:
        shop.session.rollback()
        begun.append(shop.session.begin())
        assert current_user.name

    shop.before = begin
    shop.after = lambda: begun.pop().commit()
    assert ada.get("/v1/batches?limit=0").status_code == 422


@pytest.mark.parametrize("make_database", ["postgresql", "mariadb"], indirect=True)
def test_a_view_of_the_hosts_keeps_its_changes(database_url: str, shop: Shop) -> None:
    """Calls from the host's own view neither commit what it has flushed, nor go with its rollback."""

    @shop.app.post("/order")
    def order() -> str:
        user = shop.session.execute(shop.db.select(shop.User)).scalar_one()
        user.seen = 7
        shop.session.flush()
        pending = shop.User(name="Bob")
        shop.session.add(pending)
        batch = current_llm_batches.create(owner="1", model="openai:m", requests=requests(1))
        current_llm_batches.retrieve(batch.id, owner="1")
        assert (user.seen, shop.seen(database_url)) == (7, 0)
        assert pending in shop.session.new
        shop.session.rollback()
        return batch.id

    batch_id = shop.app.test_client().post("/order").text
    assert shop.seen(database_url) == 0
    assert query(database_url, "SELECT batch_id, state FROM llm_batches_batch") == [(batch_id, "accepted")]


@pytest.mark.parametrize("engine_options", [{"connect_args": {"timeout": 0.2}}], ids=["a short timeout"])
@pytest.mark.parametrize("make_database", ["sqlite"], indirect=True)
def test_sqlite_has_one_writer(
    database_url: str, shop: Shop, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """On SQLite, a view that has flushed cannot create, before the provider hears of it; its changes stay."""

    @shop.app.post("/order")
    def order() -> str:
        shop.session.execute(shop.db.select(shop.User)).scalar_one().seen = 7
        shop.session.flush()
        with pytest.raises(RecordUnavailable):
            current_llm_batches.create(owner="1", model="openai:m", requests=requests(1))
        shop.session.commit()
        return current_llm_batches.create(owner="1", model="openai:m", requests=requests(1)).id

    client = shop.app.test_client()
    batch_id = client.post("/order").text
    assert [batch.id for batch in llm_provider.batches] == [batch_id]
    assert shop.seen(database_url) == 7
    assert "SQLite has one writer: commit or roll back" in caplog.text
