// The journey of a batch with OpenAI's client for Node.
import assert from "node:assert";
import OpenAI from "openai";

const [url, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key });
const query = { provider: "openai" };

async function create(customIds) {
  const body = {
    model: "openai:gpt-4o-mini",
    requests: customIds.map((custom_id) => ({ custom_id, body: { messages: [{ role: "user", content: "hi" }] } })),
  };
  return client.post("/batches", { body });
}

const batch = await create(["r0", "r1"]);
const results = () => client.get(`/batches/${batch.id}/results`, { query });
await assert.rejects(results(), (error) => {
  assert(error instanceof OpenAI.ConflictError);
  assert.equal(error.code, "batch_not_complete");
  assert.match(error.message, /is not yet complete/);
  return true;
});
while ((await client.batches.retrieve(batch.id, { query })).status !== "completed") {
  await new Promise((resolve) => setTimeout(resolve, 100));
}
assert.deepEqual((await results()).results.map((row) => row.custom_id).sort(), ["r0", "r1"]);

const second = await create(["r0"]);
assert.equal((await client.batches.cancel(second.id, {}, { query })).status, "cancelling");
const listed = [];
for await (const one of client.batches.list({ limit: 1 }, { query })) listed.push(one.id);
assert(listed.includes(batch.id) && listed.includes(second.id));
await assert.rejects(client.batches.retrieve("batch_nowhere", { query }), OpenAI.NotFoundError);
await assert.rejects(
  new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong" }).batches.list({}, { query }),
  OpenAI.AuthenticationError,
);
console.log("done");
