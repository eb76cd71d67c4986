"""blinker signals. The sender is the Flask app; they are sent after our record is written."""

from __future__ import annotations

from typing import Any

from blinker import NamedSignal, Namespace
from flask import current_app

from flask_llm_batches.log import get_logger

logger = get_logger(__name__)

_signals = Namespace()

batch_submitted = _signals.signal("batch-submitted")
"""A provider accepted a batch.

Payload: ``batch`` (``Batch``), ``owner`` and ``requested_by`` (strings).
"""

batch_finished = _signals.signal("batch-finished")
"""A batch was seen to be completed, failed, expired or cancelled, once, by the first call that saw it.

Payload: ``batch`` (``Batch``) and ``owner`` (a string).
"""

usage_recorded = _signals.signal("usage-recorded")
"""A row of usage was inserted.

Payload: ``usage``, a dict of its columns (``store/models/batches.py``).
"""


def send(signal: NamedSignal, **payload: Any) -> None:
    """Send a signal from the current app, unless it is muted.

    Async receivers are awaited. What a receiver raises is logged, and changes nothing.
    """
    if signal.is_muted:
        return
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # as Flask sends its own
    for receiver in signal.receivers_for(app):
        try:
            app.ensure_sync(receiver)(app, **payload)
        except Exception:
            # The signal's event has happened: after an error, the caller would repeat the call and pay again.
            logger.exception("a receiver of %s failed", signal.name)
