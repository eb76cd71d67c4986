"""Hosts of every kind; each test is a recipe."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import flask.json.provider
import jwt
import pytest
from flask import Blueprint, Flask, request, session
from flask_limiter import Limiter
from flask_login import LoginManager, UserMixin, current_user, login_user
from flask_sqlalchemy import SQLAlchemy
from flask_wtf.csrf import CSRFProtect, generate_csrf
from sqlalchemy.orm import Mapped, mapped_column
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.security import check_password_hash, generate_password_hash

from flask_llm_batches import LLMBatches, Principal, current_llm_batches
from flask_llm_batches.testing import Simulator
from tests.conftest import create_batch
from tests.hosts import MASTER_KEY, requests


@pytest.fixture
def host(llm_provider: Simulator, tmp_path: Any) -> Flask:
    """A Flask app with settings, before anything is registered."""
    app = Flask(__name__, instance_path=str(tmp_path))
    app.secret_key = "secret"
    app.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
    return app


def journey(client: Any, prefix: str = "/v1/batches", **options: Any) -> None:
    """Create, retrieve, list and cancel."""
    body = {"model": "openai:m", "requests": requests(1)}
    made = client.post(prefix, json=body, **options)
    assert made.status_code == 200, made.text
    path = f"{prefix}/{made.get_json()['id']}"
    assert client.get(path, **options).status_code == 200
    assert client.get(f"{path}/results", **options).status_code == 409
    assert len(client.get(prefix, **options).get_json()["data"]) == 1
    assert client.post(f"{path}/cancel", **options).status_code == 200


def test_flask_login(host: Flask, tmp_path: Any) -> None:
    """Flask-Login with users in the host's database."""
    db = SQLAlchemy()
    model: Any = db.Model

    class User(UserMixin, model):  # type: ignore[misc]
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    llm_batches = LLMBatches(db=db)

    @llm_batches.authenticator
    def principal() -> Principal | None:
        return Principal(owner=str(current_user.id)) if current_user.is_authenticated else None

    host.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'app.sqlite3'}"
    db.init_app(host)
    login = LoginManager(host)
    login.user_loader(lambda user_id: db.session.get(User, int(user_id)))
    llm_batches.init_app(host)
    with host.app_context():
        db.create_all()
        db.session.add(User(name="ada"))
        db.session.commit()

    @host.post("/login")
    def log_in() -> str:
        login_user(db.session.execute(db.select(User)).scalar_one())
        return "welcome"

    client = host.test_client()
    assert client.get("/v1/batches").status_code == 401
    client.post("/login")
    journey(client)


def test_json_web_tokens(host: Flask) -> None:
    """A JWT in the Authorization header; a key of ours goes by another header then."""
    secret = "a secret of at least thirty-two bytes"
    llm_batches = LLMBatches(host)

    @llm_batches.authenticator
    def principal() -> Principal | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            claims = jwt.decode(token, secret, algorithms=["HS256"]) if scheme == "Bearer" else None
        except jwt.InvalidTokenError:
            return None
        return (
            None if claims is None else Principal(claims["sub"], admin="batches" in claims.get("roles", []))
        )

    token = jwt.encode({"sub": "ada"}, secret, algorithm="HS256")
    journey(host.test_client(), headers={"Authorization": f"Bearer {token}"})
    forged = jwt.encode({"sub": "ada"}, secret + "!", algorithm="HS256")
    assert (
        host.test_client().get("/v1/batches", headers={"Authorization": f"Bearer {forged}"}).status_code
        == 401
    )


def test_http_basic(host: Flask) -> None:
    """HTTP basic, as Flask reads it."""
    passwords = {"ada": generate_password_hash("lovelace")}
    llm_batches = LLMBatches(host)

    @llm_batches.authenticator
    def principal() -> Principal | None:
        basic = request.authorization
        if basic is None or not check_password_hash(
            passwords.get(basic.username or "", ""), basic.password or ""
        ):
            return None
        return Principal(owner=str(basic.username))

    journey(host.test_client(), auth=("ada", "lovelace"))
    assert host.test_client().get("/v1/batches", auth=("ada", "byron")).status_code == 401


def test_csrf_protection(host: Flask) -> None:
    """Flask-WTF: the blueprint is exempt, and an authenticator that takes cookies protects itself."""
    csrf = CSRFProtect(host)
    host.config["LLM_BATCHES_MASTER_KEY"] = MASTER_KEY
    llm_batches = LLMBatches(host)
    csrf.exempt(llm_batches.blueprint)

    @llm_batches.authenticator
    def principal() -> Principal | None:
        if "user" not in session:
            return None
        csrf.protect()
        return Principal(session["user"])

    @host.get("/token")
    def token() -> str:
        session["user"] = "ada"
        return str(generate_csrf())

    keyed = host.test_client()
    made = keyed.post(
        "/v1/batches", json={"model": "openai:m", "requests": requests(1)}, headers={"X-API-Key": MASTER_KEY}
    )
    assert made.status_code == 200
    browser = host.test_client()
    value = browser.get("/token").text
    body = {"model": "openai:m", "requests": requests(1)}
    refused = browser.post("/v1/batches", json=body)
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (400, "bad_request")
    journey(browser, headers={"X-CSRFToken": value})


def test_limits(host: Flask) -> None:
    """Flask-Limiter on our blueprint; its answer has our form."""
    llm_batches = LLMBatches()
    llm_batches.authenticator(lambda: Principal("ada"))
    limiter = Limiter(lambda: "ada", app=host, storage_uri="memory://", headers_enabled=True)
    limiter.limit("2 per hour")(llm_batches.blueprint)
    llm_batches.init_app(host)
    client = host.test_client()
    assert [client.get("/v1/batches").status_code for _ in range(3)] == [200, 200, 429]
    refused = client.get("/v1/batches")
    assert refused.get_json()["error"] == {
        "message": "2 per 1 hour",
        "type": "rate_limit_error",
        "code": "rate_limited",
        "param": None,
    }
    assert refused.headers["Retry-After"]


def test_nested_under_the_hosts_blueprint(host: Flask) -> None:
    """Our blueprint inside one of the host's, with its prefix and its own error pages."""
    llm_batches = LLMBatches()
    llm_batches.authenticator(lambda: Principal("ada"))
    api = Blueprint("api", __name__, url_prefix="/api")
    api.register_error_handler(404, lambda _: ("the host's", 404))
    api.register_blueprint(llm_batches.blueprint, url_prefix="/batches")
    llm_batches.init_app(host, register_blueprint=False)
    host.register_blueprint(api)
    journey(host.test_client(), prefix="/api/batches")
    missing = host.test_client().get("/api/batches/b1?provider=openai")
    assert missing.get_json()["error"]["code"] == "not_found"
    refused = host.test_client().post("/api/batches", json={})
    assert refused.get_json()["detail"][0]["loc"][0] == "body"
    document = host.test_client().get("/api/batches/openapi.json").get_json()
    assert "/api/batches/{batch_id}" in document["paths"]
    assert 'src="/api/batches/docs/docs.js' in host.test_client().get("/api/batches/docs").text


def test_behind_a_proxy_with_a_prefix(host: Flask) -> None:
    """ProxyFix with a path prefix: the routes work, and the document knows."""
    host.wsgi_app = ProxyFix(host.wsgi_app, x_prefix=1)  # type: ignore[method-assign]
    LLMBatches(host).authenticator(lambda: Principal("ada"))
    headers = {"X-Forwarded-Prefix": "/shop"}
    journey(host.test_client(), headers=headers)
    document = host.test_client().get("/v1/batches/openapi.json", headers=headers).get_json()
    assert document["servers"] == [{"url": "/shop"}]


def test_a_json_provider_of_the_hosts(host: Flask) -> None:
    """A host that renders JSON its own way does not change what goes over our wire."""

    class Camel(flask.json.provider.DefaultJSONProvider):
        def dumps(self, obj: Any, **_: Any) -> str:
            return "{}" if obj != Decimal(1) else "1"

    host.json = Camel(host)
    LLMBatches(host).authenticator(lambda: Principal("ada"))
    client = host.test_client()
    made = client.post(
        "/v1/batches",
        data=b'{"model": "openai:m", "requests": [{"custom_id": "a", "body": {}}]}',
        content_type="application/json",
    )
    assert made.get_json()["object"] == "batch"
    assert client.get("/v1/batches/x").get_json()["error"]["code"] == "validation_error"


def test_an_async_view(host: Flask) -> None:
    """A host's async view uses ``current_llm_batches``, in a thread so that its loop goes on."""
    LLMBatches(host)

    @host.get("/summaries")
    async def summaries() -> dict[str, Any]:
        def create() -> str:
            with host.app_context():
                return current_llm_batches.create(owner="ada", model="openai:m", requests=requests(1)).id

        batch_id = await asyncio.to_thread(create)
        return {"status": current_llm_batches.retrieve(batch_id, owner="ada").status}

    assert host.test_client().get("/summaries").get_json() == {"status": "in_progress"}


def test_a_hosts_own_test(host: Flask, llm_provider: Simulator) -> None:
    """A host tests its app with the fixture ``llm_provider``: answers, failures and the clock are its own."""
    LLMBatches(host).authenticator(lambda: Principal("ada"))
    client = host.test_client()
    llm_provider.respond = lambda line: {
        "object": "chat.completion",
        "choices": [],
        "id": line["custom_id"],
        "created": 1,
        "model": "m",
    }
    batch_id = create_batch(client, 2)
    llm_provider.batches[0].finish()
    rows = client.get(f"/v1/batches/{batch_id}/results").get_json()["results"]
    assert {row["result"]["id"] for row in rows} == {"r0", "r1"}
    llm_provider.fail_next(status=500)
    assert client.post(f"/v1/batches/{batch_id}/cancel").status_code == 502
    assert llm_provider.calls_to("POST /batches")
