"""Providers that have batches in any-llm, but cannot run ours."""

from __future__ import annotations

from typing import ClassVar

from flask_llm_batches.errors import UnsupportedProvider
from flask_llm_batches.providers.adapters.base import Adapter, Submission


class _Refused(Adapter):
    why: ClassVar[str]

    @classmethod
    def check(cls, submission: Submission) -> None:  # noqa: ARG003  # refuses all
        raise UnsupportedProvider(f"No batch can be made here: {cls.why}", param="model")


class AzureAnthropicAdapter(_Refused):
    why = "Claude in Microsoft Foundry has no batch API."


class BedrockAdapter(_Refused):
    why = "Bedrock reads requests from an S3 bucket only, in a form of its own."


class OtariAdapter(_Refused):
    why = "a batch at an Otari gateway can be found again only with the name of the provider behind it."


class VertexAIAdapter(_Refused):
    why = "Vertex AI reads requests from Cloud Storage or BigQuery only."


class VertexAIAnthropicAdapter(_Refused):
    why = "Anthropic's SDK has no batches for Claude in Vertex AI."
