"""The journey of a batch with the ``otari`` package; run with an otari of any version on the path."""

from __future__ import annotations

import sys
import time
from typing import Any

from otari import OtariClient
from otari.errors import BatchNotCompleteError, ModelNotFoundError


def field(batch: Any, name: str) -> Any:
    return batch[name] if isinstance(batch, dict) else getattr(batch, name)


def main(url: str, key: str) -> None:
    client = OtariClient(api_base=url, api_key=key)
    requests: list[Any] = [
        {
            "custom_id": f"r{number}",
            "body": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
        }
        for number in range(3)
    ]
    batch = client.create_batch(
        {"model": "openai:gpt-4o-mini", "requests": requests, "metadata": {"team": "a"}}
    )
    batch_id = field(batch, "id")
    try:
        client.retrieve_batch_results(batch_id, "openai")
        raise AssertionError("results of a running batch")
    except BatchNotCompleteError as error:
        assert error.batch_id == batch_id, error.batch_id
        assert error.batch_status in ("validating", "in_progress"), error.batch_status
    while field(client.retrieve_batch(batch_id, "openai"), "status") != "completed":
        time.sleep(0.1)
    result = client.retrieve_batch_results(batch_id, "openai")
    assert sorted(item.custom_id for item in result.results) == ["r0", "r1", "r2"]
    assert all(item.error is None for item in result.results)
    listed = client.list_batches("openai", {"limit": 5})
    assert batch_id in [field(one, "id") for one in listed]
    second = client.create_batch({"model": "openai:gpt-4o-mini", "requests": requests})
    cancelled = client.cancel_batch(field(second, "id"), "openai")
    assert field(cancelled, "status") == "cancelling"
    try:
        client.retrieve_batch("batch_nowhere", "openai")
        raise AssertionError("a batch that does not exist")
    except ModelNotFoundError:
        print("done")


main(*sys.argv[1:])
