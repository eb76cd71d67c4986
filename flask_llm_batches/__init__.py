"""Batch endpoints for large language models, inside the Flask app you already have."""

from flask_llm_batches.batch import Batch
from flask_llm_batches.core.service import current_llm_batches
from flask_llm_batches.errors import ConfigurationError, LLMBatchesError
from flask_llm_batches.extension import LLMBatches
from flask_llm_batches.principal import Principal

__all__ = ["Batch", "ConfigurationError", "LLMBatches", "LLMBatchesError", "Principal", "current_llm_batches"]
