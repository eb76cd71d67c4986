"""OpenTelemetry's spans. Nothing happens if ``opentelemetry-api`` is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

try:
    from opentelemetry import trace
except ImportError:  # pragma: no cover  # a test does this in a process of its own
    trace = None  # type: ignore[assignment]


@contextmanager
def span(name: str, *, current: bool = True, **attributes: str | int) -> Iterator[None]:
    """Run the block in a span.

    The span has the class of an error in the block, but not its text, which may be a provider's.

    Args:
        name: The name, without ``llm_batches.``.
        current: Whether spans in the block are children of this one. False for a block with a ``yield``:
            otherwise spans of the caller would be children of this one, too.
        attributes: The attributes, without ``llm_batches.`` in their names.
    """
    if trace is None:  # pragma: no cover
        yield
        return
    one = trace.get_tracer("flask_llm_batches").start_span(
        f"llm_batches.{name}",
        attributes={f"llm_batches.{key}": value for key, value in attributes.items()},
    )
    quiet = {"record_exception": False, "set_status_on_exception": False}
    try:
        with trace.use_span(one, **quiet) if current else nullcontext():
            yield
    except Exception as error:
        one.set_attribute("error.type", type(error).__name__)
        one.set_status(trace.StatusCode.ERROR)
        raise
    finally:
        one.end()
