"""A program for OpenAI's batch API, as its guide has it: the same lines, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from openai import AsyncOpenAI, OpenAI

MESSAGES = ["What is the capital of France?", "And of Italy?", "Fail, please."]


def tasks() -> str:
    """Write the tasks as OpenAI's cookbook does, and return the path of their file."""
    lines = []
    for index, text in enumerate(MESSAGES):
        body = {
            "model": "gpt-4o-mini",
            "temperature": 0.2,
            "max_tokens": 300,
            "messages": [
                {"role": "system", "content": "You answer questions."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": text},
                        {"type": "image_url", "image_url": {"url": "https://example.com/map.png"}},
                    ],
                },
            ],
        }
        task = {"custom_id": f"task-{index}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(task))
    path = Path(tempfile.mkdtemp()) / "batch_tasks.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def check(output: bytes, errors: str) -> None:
    results = [json.loads(line) for line in output.decode().strip().split("\n")]
    answers = {
        result["custom_id"]: result["response"]["body"]["choices"][0]["message"]["content"]
        for result in results
    }
    assert answers.keys() == {"task-0", "task-1"}
    assert all(isinstance(answer, str) and answer for answer in answers.values())
    (failed,) = [json.loads(line) for line in errors.splitlines()]
    assert failed["custom_id"] == "task-2"
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["message"] == "as asked"


def run(client: OpenAI) -> None:
    with open(tasks(), "rb") as file:  # noqa: PTH123  # as in the cookbook
        batch_file = client.files.create(file=file, purpose="batch")
    client.files.wait_for_processing(batch_file.id)
    job = client.batches.create(
        input_file_id=batch_file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"description": "nightly eval job"},
    )
    assert job.status == "validating"
    while (job := client.batches.retrieve(job.id)).status not in ("completed", "failed"):
        time.sleep(0.1)
    assert job.status == "completed", job.errors
    assert job.request_counts is not None
    counts = job.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    assert job.output_file_id is not None
    assert job.error_file_id is not None
    check(client.files.content(job.output_file_id).content, client.files.content(job.error_file_id).text)
    assert job.id in [one.id for one in client.batches.list(limit=10)]
    assert {batch_file.id, job.output_file_id} <= {one.id for one in client.files.list()}
    assert client.files.delete(batch_file.id).deleted


async def run_async(client: AsyncOpenAI) -> None:
    with open(tasks(), "rb") as file:  # noqa: ASYNC230, PTH123  # as in the cookbook
        batch_file = await client.files.create(
            file=file, purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert batch_file.expires_at == batch_file.created_at + 3600
    job = await client.batches.create(
        input_file_id=batch_file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    while (job := await client.batches.retrieve(job.id)).status not in ("completed", "failed"):
        await asyncio.sleep(0.1)
    assert job.output_file_id is not None
    assert job.error_file_id is not None
    output, errors = await asyncio.gather(
        client.files.content(job.output_file_id), client.files.content(job.error_file_id)
    )
    check(output.content, errors.text)


if __name__ == "__main__":
    url, key = sys.argv[1:]
    run(OpenAI(base_url=f"{url}/v1", api_key=key))
    asyncio.run(run_async(AsyncOpenAI(base_url=f"{url}/v1", api_key=key)))
    print("done")
