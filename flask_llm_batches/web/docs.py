"""The interactive page of the OpenAPI document: Swagger UI, from the package flask-swagger-ui."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from flask import Response, current_app, request, url_for
from markupsafe import Markup

from flask_llm_batches.errors import DocsNotInstalled

ASSETS = {
    "docs.js": "text/javascript",
    "favicon-32x32.png": "image/png",
    "index.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
"""The files that the page loads. No others are served: these names are in the URL map."""

# The icons in Swagger UI's stylesheet are data URLs. Nothing else is needed, and no form is ever sent.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_PAGE = Markup("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Batches for large language models</title>
<link rel="icon" type="image/png" href="{assets[favicon-32x32.png]}">
<link rel="stylesheet" href="{assets[index.css]}">
<link rel="stylesheet" href="{assets[swagger-ui.css]}">
</head>
<body data-csrf-token="{token}">
<div id="docs"></div>
<noscript>This page needs JavaScript.</noscript>
<script src="{assets[swagger-ui-bundle.js]}"></script>
<script src="{assets[docs.js]}"></script>
</body>
</html>
""")


def docs() -> Response:
    _swagger_ui()
    versions = f"{version('flask-llm-batches')}-{version('flask-swagger-ui')}"
    assets = {name: url_for(".docs_asset", name=name, v=versions) for name in ASSETS}
    page = _PAGE.format(assets=assets, token=_csrf_token())
    # A CSRF protection of the host may require the Referer of its own pages.
    headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "same-origin"}
    return Response(page, mimetype="text/html", headers=headers)


def docs_asset(name: str) -> Response:
    folder = Path(__file__).parent if name == "docs.js" else _swagger_ui()
    response = Response((folder / name).read_bytes(), mimetype=ASSETS[name])
    # Its address has the versions, so it never changes there. Not public: the host may add a cookie.
    response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    response.add_etag()
    response.make_conditional(request)
    return response


def _swagger_ui() -> Path:
    try:
        import flask_swagger_ui
    except ImportError:
        raise DocsNotInstalled from None
    return Path(flask_swagger_ui.__file__).parent / "dist"


def _csrf_token() -> str:
    """Return Flask-WTF's token, if the host uses it to protect callers who send a cookie."""
    generate = current_app.jinja_env.globals.get("csrf_token")
    return str(generate()) if callable(generate) and current_app.secret_key else ""
