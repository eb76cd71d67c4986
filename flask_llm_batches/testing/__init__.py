"""A provider on loopback, for our tests and for yours."""

from flask_llm_batches.testing.simulator import Call, SimulatedBatch, Simulator

__all__ = ["Call", "SimulatedBatch", "Simulator"]
