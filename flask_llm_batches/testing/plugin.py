"""pytest fixtures, which every test can use as soon as the package is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask_llm_batches.testing import Simulator


@pytest.fixture
def llm_provider() -> Iterator[Simulator]:
    """Run a simulated provider. Configure it with ``LLM_BATCHES_PROVIDERS = llm_provider.providers``."""
    from flask_llm_batches.testing import Simulator

    with Simulator() as simulator:
        yield simulator
