"""The package openai-batch: its class and its command."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from openai_batch import Batch
from openai_batch.providers import Provider


def main(url: str, key: str) -> None:
    folder = Path(tempfile.mkdtemp())
    provider = Provider(base_url=f"{url}/v1", api_key=key)
    requests = folder / "in.jsonl"
    with requests.open("w") as file:
        for number, text in enumerate(("one", "two")):
            messages = [{"role": "user", "content": text}]
            body = {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 100}
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    with Batch(str(requests), str(folder / "out.jsonl"), provider=provider) as batch:
        result, output_path, error_path = batch.submit_wait_download(interval=0)
    assert result.status == "completed"
    rows = [json.loads(line) for line in Path(output_path).read_text().splitlines()]
    answers = [row["response"]["body"]["choices"][0]["message"]["content"] for row in rows]
    assert sorted(answers) == ["one", "two"]
    assert error_path is None

    command = [sys.executable, "-m", "openai_batch.run", str(requests)]
    options = ["--output-file", str(folder / "again.jsonl"), "--base-url", f"{url}/v1", "--api-key", key]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=50)
    assert len((folder / "again.jsonl").read_text().splitlines()) == 2


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("done")
