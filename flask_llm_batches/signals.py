"""blinker signals. The sender is the Flask app; they are sent in the request, after our record is written."""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

batch_submitted = _signals.signal("batch-submitted")
"""A provider accepted a batch. Payload: ``batch`` (``Batch``), ``owner`` and ``requested_by`` (strings)."""

batch_finished = _signals.signal("batch-finished")
"""A batch was seen to be completed, failed, expired or cancelled: once, at the first call that saw it.

Payload: ``batch`` (``Batch``) and ``owner`` (a string).
"""

usage_recorded = _signals.signal("usage-recorded")
"""A row was put into the usage. Payload: ``usage``, a dict of its columns (``store/models.py``)."""
