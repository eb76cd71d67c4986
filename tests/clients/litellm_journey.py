"""litellm's files and batches, with the base URL set."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import litellm


def main(url: str, key: str) -> None:
    at = {"custom_llm_provider": "openai", "api_base": f"{url}/v1", "api_key": key}
    path = Path(tempfile.mkdtemp()) / "batch.jsonl"
    body = {"model": "gpt-4o-mini", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
    line = {"custom_id": "r0", "method": "POST", "url": "/v1/chat/completions", "body": body}
    path.write_text(json.dumps(line) + "\n")
    with path.open("rb") as file:
        uploaded = litellm.create_file(file=file, purpose="batch", **at)
    batch = litellm.create_batch(
        completion_window="24h",
        endpoint="/v1/chat/completions",
        input_file_id=uploaded.id,
        metadata={"key": "value"},
        **at,
    )
    while (batch := litellm.retrieve_batch(batch_id=batch.id, **at)).status not in ("completed", "failed"):
        time.sleep(0.1)
    content = litellm.file_content(file_id=batch.output_file_id, **at)
    (row,) = [json.loads(text) for text in content.text.splitlines()]
    assert row["response"]["body"]["choices"][0]["message"]["content"] == "hi"
    assert litellm.file_retrieve(file_id=uploaded.id, **at).purpose == "batch"
    assert uploaded.id in [one.id for one in litellm.file_list(**at)]
    assert batch.id in [one.id for one in litellm.list_batches(**at)]
    litellm.file_delete(file_id=uploaded.id, **at)


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("done")
