// A program for OpenAI's batch API with its client for Node: files in, files out.
import assert from "node:assert";
import OpenAI, { toFile } from "openai";

const [url, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key });

const lines = ["task-0", "task-1"].map((custom_id) =>
  JSON.stringify({
    custom_id,
    method: "POST",
    url: "/v1/chat/completions",
    body: { model: "gpt-4o-mini", max_tokens: 100, messages: [{ role: "user", content: "hi" }] },
  }),
);
const file = await client.files.create({
  file: await toFile(Buffer.from(lines.join("\n")), "batch.jsonl"),
  purpose: "batch",
});
assert.equal(file.status, "processed");
let batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
assert.equal(batch.status, "validating");
while (!["completed", "failed"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 100));
  batch = await client.batches.retrieve(batch.id);
}
const content = await client.files.content(batch.output_file_id);
const rows = (await content.text()).trim().split("\n").map((line) => JSON.parse(line));
assert.deepEqual(rows.map((row) => row.custom_id).sort(), ["task-0", "task-1"]);
assert.equal(rows[0].response.body.choices[0].message.content, "hi");
assert.equal(batch.error_file_id, null);
const names = [];
for await (const one of client.files.list({ limit: 1 })) names.push(one.id);
assert(names.includes(file.id) && names.includes(batch.output_file_id));
await assert.rejects(client.files.retrieve("file-none"), OpenAI.NotFoundError);
assert((await client.files.delete(file.id)).deleted);
console.log("done");
