"""Why a batch counts as failed although its provider does not say so: items of ``errors.data``."""

from __future__ import annotations

NOT_THERE = {
    "code": "not_created",
    "line": None,
    "message": "The provider has no such batch: nothing of it has run, and nothing was billed.",
    "param": None,
}

ID_TAKEN = {
    "code": "id_taken",
    "line": None,
    "message": "The provider has given the id of this batch to another one, and no longer has this one.",
    "param": None,
}

LOST = {
    "code": "lost",
    "line": None,
    "message": "The provider has had no such batch for more than a day.",
    "param": None,
}
