"""Protects the forms of the dashboard from pages of other sites.

Browsers send cookies and the credentials of HTTP Basic with forms of other sites, too. ``SameSite`` depends
on the host's cookies, does not keep out sibling domains, and does not exist for HTTP Basic. So a form counts
only if it passes two checks, and neither of them needs a session of the host:

1. The browser says that the form is on a page of this origin: in ``Sec-Fetch-Site``, or, without that header,
   in ``Origin``. No page can change these headers. A form with neither of them is refused.
2. The form has a token that fits the cookie of its page and the caller (a signed double submit). Another site
   that can set a cookie, such as a sibling domain, cannot sign a token for it, and the token of one caller is
   of no use to another.

Tokens are signed with the ``SECRET_KEY`` of the host. Without one, they are signed with the keys of
providers, which all processes of the host have. Without those, they are signed with a key of this process.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from urllib.parse import urlsplit

from flask import Response, current_app, g, request

from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.errors import Forbidden
from flask_llm_batches.web.auth import caller

FIELD = "llm_batches_token"
"""The field of a form that has its token."""

_COOKIE = "llm_batches_form"
_RANDOM = re.compile("[A-Za-z0-9_-]{22}")
_OF_THIS_PROCESS = secrets.token_bytes(32)


def check_form() -> None:
    """Check that the form of this request is on a page of ours.

    Raises:
        Forbidden: It is not, or its page is too old.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    own = site == "same-origin" if site is not None else _host_of(origin or "") == request.host
    if not own:
        raise Forbidden("This form is not on a page of this site.")
    known = request.cookies.get(_cookie(), "")
    token = request.form.get(FIELD, "").encode("utf-8", "replace")
    if not _RANDOM.fullmatch(known) or not hmac.compare_digest(token, _sign(known).encode()):
        raise Forbidden("This form is out of date: go back, load its page again, and repeat what you did.")


def form_token() -> str:
    """Return the token for the forms of this page."""
    known = request.cookies.get(_cookie(), "")
    if not _RANDOM.fullmatch(known):
        known = g.llm_batches_form = g.get("llm_batches_form") or secrets.token_urlsafe(16)
    return _sign(known)


def keep_token(response: Response) -> Response:
    """Set the cookie that the tokens of this page belong to, if it is not there yet."""
    if (made := g.get("llm_batches_form")) is not None:
        secure = request.is_secure
        response.set_cookie(_cookie(), made, secure=secure, httponly=True, samesite="Lax")
    return response


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # such as "http://["
        return None


def _cookie() -> str:
    # With this prefix, browsers let no other domain set the cookie, and no page without TLS.
    return f"__Host-{_COOKIE}" if request.is_secure else _COOKIE


def _sign(number: str) -> str:
    who = caller()
    text = f"{number}:{who.admin}:{who.owner}".encode("utf-8", "surrogatepass")
    return hmac.new(_key(), text, hashlib.sha256).hexdigest()


def _key() -> bytes:
    shared: list[str | bytes | None] = [current_app.secret_key]
    if not current_app.secret_key:
        shared = [one.api_key for one in (current_llm_batches.settings.providers or {}).values()]
    known = [one.encode() if isinstance(one, str) else one for one in shared if one]
    return hashlib.sha256(b"\0".join([FIELD.encode(), *(known or [_OF_THIS_PROCESS])])).digest()
