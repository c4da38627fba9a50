// The npm openai SDK, unmodified. test_node.py runs this file and says in the environment where to find what.
"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");
const { setTimeout: sleep } = require("node:timers/promises");
const { randomUUID } = require("node:crypto");
const net = require("node:net");
const OpenAI = require("openai");
const { zodResponseFormat } = require("openai/helpers/zod");
const { z } = require("zod");

const target = { url: process.env.E2E_URL, model: process.env.E2E_MODEL, engines: process.env.E2E_ENGINES.split(",") };
const scripts = { url: process.env.E2E_SCRIPTS_URL, model: "scripted", engine: process.env.E2E_SCRIPTS_ENGINE };
const cramped = { url: process.env.E2E_CRAMPED_URL, model: "scripted" };
const deserted = { url: process.env.E2E_DESERTED_URL, model: "scripted" };

const messages = [{ role: "user", content: "Hello." }];
const exactly = (tokens) => ({ max_tokens: tokens, ignore_eos: true });
const long = exactly(8000); // takes an engine many seconds

function client(at, options = {}) {
  return new OpenAI({ baseURL: at.url + "/v1", apiKey: "none", maxRetries: 0, timeout: 600_000, ...options });
}

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const textOf = (chunks) => chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta.content ?? "")).join("");

// sum adds up a metric over the engines.
async function sum(pattern) {
  let total = 0;
  for (const engine of target.engines) {
    const page = await (await fetch(engine + "/metrics")).text();
    for (const line of page.split("\n")) if (pattern.test(line)) total += Number(line.slice(line.lastIndexOf(" ")));
  }
  return total;
}

const running = () => sum(/^vllm:num_requests_(running|waiting)\{/);
const finished = () => sum(/^vllm:request_success_total\{.*finished_reason="length"/);

async function idle() {
  while ((await running()) > 0) await sleep(20);
}

// dropped has leave ask for long answers and leave them, and wants the engines to drop them. An engine that computes may be deaf for
// seconds, and the answer be whole before it hears that nobody waits: then it is tried again.
async function dropped(leave) {
  for (let tries = 0; tries < 5; tries++) {
    await idle();
    const before = await finished();
    await leave();
    await idle();
    if ((await finished()) === before) return;
  }
  assert.fail("the engines finish answers that nobody waits for");
}

// received tells what reached the scripted engine under a key.
async function received(key) {
  return (await fetch(`${scripts.engine}/received/${key}`)).json();
}

test("models", async () => {
  const ids = [];
  for await (const model of client(target).models.list()) ids.push(model.id);
  assert.ok(ids.includes(target.model));
});

test("chat", async () => {
  const { data, response, request_id } = await client(target).chat.completions.create({ model: target.model, messages, ...exactly(16) }).withResponse();
  assert.ok(data.choices[0].message.content);
  assert.equal(data.choices[0].finish_reason, "length");
  assert.equal(data.usage.completion_tokens, 16);
  assert.ok(request_id);
  assert.equal(response.headers.get("x-request-id"), request_id);
});

test("completion", async () => {
  const asked = { model: target.model, prompt: "Once upon", ...exactly(16) };
  assert.ok((await client(target).completions.create(asked)).choices[0].text);
  const chunks = await collect(await client(target).completions.create({ ...asked, stream: true }));
  assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
});

test("stream", async () => {
  const chunks = await collect(await client(target).chat.completions.create({ model: target.model, messages, stream: true, ...exactly(500) }));
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
  assert.ok(textOf(chunks));
});

test("events come as they are made", async () => {
  const key = randomUUID();
  let text = "";
  for await (const chunk of await client(scripts).chat.completions.create({
    model: scripts.model, messages, stream: true, script: { key, content: "Bit by bit.", held: 4 },
  })) {
    text += textOf([chunk]);
    if (text === "Bit") await fetch(`${scripts.engine}/release/${key}`); // before, the engine says no more
  }
  assert.equal(text, "Bit by bit.");
});

test("stream runner", async () => {
  const runner = client(scripts).chat.completions.stream({ model: scripts.model, messages, script: { content: "Hello, world." } });
  let deltas = "";
  runner.on("content", (delta) => (deltas += delta));
  assert.equal(await runner.finalContent(), "Hello, world.");
  assert.equal(deltas, "Hello, world.");
});

for (const [options, told] of [
  [{}, false],
  [{ stream_options: { include_usage: false } }, false],
  [{ stream_options: { include_usage: true } }, true],
]) {
  test(`usage with ${JSON.stringify(options)}`, async () => {
    const chunks = await collect(await client(target).chat.completions.create({ model: target.model, messages, stream: true, ...exactly(8), ...options }));
    assert.deepEqual(chunks.filter((c) => c.usage).map((c) => c.usage.completion_tokens), told ? [8] : []);
    assert.equal(chunks.at(-1).choices.length, told ? 0 : 1);
  });
}

test("n=2", async () => {
  const answer = await client(target).chat.completions.create({ model: target.model, messages, n: 2, ...exactly(8) });
  assert.deepEqual(answer.choices.map((c) => c.index), [0, 1]);
  const chunks = await collect(await client(target).chat.completions.create({ model: target.model, messages, n: 2, stream: true, ...exactly(8) }));
  assert.deepEqual([...new Set(chunks.flatMap((chunk) => chunk.choices.map((c) => c.index)))].sort(), [0, 1]);
});

test("tools", async () => {
  const key = randomUUID();
  const call = { id: "call_1", type: "function", function: { name: "get_weather", arguments: '{"city":"Zürich"}' } };
  const tools = [{ type: "function", function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } } }];
  const asked = { model: scripts.model, messages, tools, tool_choice: "required", script: { key, tool_calls: [call] } };
  const answer = await client(scripts).chat.completions.create(asked);
  assert.deepEqual(answer.choices[0].message.tool_calls, [call]);
  const final = await client(scripts).chat.completions.stream(asked).finalChatCompletion();
  assert.equal(final.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
  assert.equal(final.choices[0].finish_reason, "tool_calls");
  for (const { body } of await received(key)) assert.deepEqual(JSON.parse(body).tools, tools);
});

test("structured output", async () => {
  const key = randomUUID();
  const event = { name: "Fête 🎉", guests: ["Ana", "Bo"] };
  const format = zodResponseFormat(z.object({ name: z.string(), guests: z.array(z.string()) }), "event");
  const answer = await client(scripts).chat.completions.parse({
    model: scripts.model, messages, response_format: format, script: { key, content: JSON.stringify(event) },
  });
  assert.deepEqual(answer.choices[0].message.parsed, event);
  const [arrived] = await received(key);
  assert.deepEqual(JSON.parse(arrived.body).response_format, JSON.parse(JSON.stringify(format)));
});

test("unicode", async () => {
  for (const content of ["👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 日本語", "\u0000\u0001\n\r\t\u007f\u2028", '"}\n\ndata: [DONE]\n\n{"']) {
    const asked = { model: scripts.model, messages: [{ role: "user", content }], script: { key: randomUUID(), content } };
    assert.equal((await client(scripts).chat.completions.create(asked)).choices[0].message.content, content);
    assert.equal(textOf(await collect(await client(scripts).chat.completions.create({ ...asked, stream: true }))), content);
    const arrived = await received(asked.script.key);
    assert.equal(arrived[0].body, JSON.stringify(asked));
    assert.equal(JSON.parse(arrived[1].body).messages[0].content, content);
  }
});

test("1 MB of prompt", async () => {
  const asked = client(target).chat.completions.create({ model: target.model, messages: [{ role: "user", content: "word ".repeat(200_000) }], max_tokens: 2 });
  if (process.env.E2E_KIND === "mock") assert.ok((await asked).usage.prompt_tokens > 100_000);
  else await assert.rejects(asked, OpenAI.BadRequestError);
});

for (const [how, leave] of [["abort", (stream) => stream.controller.abort()], ["break", null]]) {
  test(`${how} in mid-stream`, async () => {
    await dropped(async () => {
      const stream = await client(target).chat.completions.create({ model: target.model, messages, stream: true, ...long });
      let seen = 0;
      for await (const _ of stream) {
        if (++seen < 3) continue;
        if (!leave) break;
        leave(stream);
      }
    });
  });
}

test("abort before the answer", async () => {
  await dropped(async () => {
    const controller = new AbortController();
    let outcome;
    const asked = client(target).chat.completions.create({ model: target.model, messages, ...long }, { signal: controller.signal });
    const settled = asked.then((answer) => (outcome = answer), (err) => (outcome = err));
    while (!outcome && (await running()) === 0) await sleep(20);
    controller.abort();
    await settled;
    assert.ok(outcome instanceof OpenAI.APIUserAbortError || outcome.choices, outcome);
  });
});

test("time-out", async () => {
  await dropped(() =>
    assert.rejects(client(target, { timeout: 500 }).chat.completions.create({ model: target.model, messages, ...long }), OpenAI.APIConnectionTimeoutError));
});

test("unknown model and bad values", async () => {
  for (const stream of [false, true]) {
    const create = (body) => client(target).chat.completions.create({ model: target.model, messages, stream, ...body });
    await assert.rejects(create({ model: "nobody" }), (err) => err instanceof OpenAI.NotFoundError && err.param === "model" && Boolean(err.requestID));
    await assert.rejects(create({ max_tokens: -1 }), OpenAI.BadRequestError);
    await assert.rejects(create({ messages: "Hello." }), OpenAI.BadRequestError);
  }
});

for (const [status, kind] of [
  [400, OpenAI.BadRequestError], [401, OpenAI.AuthenticationError], [403, OpenAI.PermissionDeniedError], [404, OpenAI.NotFoundError],
  [409, OpenAI.ConflictError], [422, OpenAI.UnprocessableEntityError], [429, OpenAI.RateLimitError], [500, OpenAI.InternalServerError],
  [503, OpenAI.InternalServerError],
]) {
  test(`status ${status}`, async () => {
    for (const stream of [false, true]) {
      const asked = client(scripts).chat.completions.create({ model: scripts.model, messages, stream, script: { key: randomUUID(), refusals: 9, status } });
      await assert.rejects(asked, (err) => err instanceof kind && err.status === status && err.type === "ScriptedError" && err.param === "script");
    }
  });
}

test("broken stream", async () => {
  let text = "";
  await assert.rejects(async () => {
    const stream = await client(scripts).chat.completions.create({ model: scripts.model, messages, stream: true, script: { content: "Never said in full.", cut: 4 } });
    for await (const chunk of stream) text += chunk.choices[0].delta.content ?? "";
  }, (err) => err instanceof OpenAI.APIError && err.type === "fairway_upstream_failed");
  assert.equal(text, "Nev");
});

test("no engine", async () => {
  await assert.rejects(client(deserted).chat.completions.create({ model: deserted.model, messages }),
    (err) => err instanceof OpenAI.InternalServerError && [502, 503].includes(err.status) && err.type.startsWith("fairway_"));
});

for (const status of [429, 503]) {
  test(`retry after ${status}`, async () => {
    for (const stream of [false, true]) {
      const key = randomUUID();
      const script = { key, refusals: 1, status, retry_after: 2 };
      const answer = await client(scripts, { maxRetries: 3 }).chat.completions.create({ model: scripts.model, messages, stream, script });
      assert.equal(stream ? textOf(await collect(answer)) : answer.choices[0].message.content, "Fine.");
      const arrivals = await received(key);
      assert.deepEqual(arrivals.map((r) => r.headers["x-stainless-retry-count"]), ["0", "1"]);
      assert.ok(arrivals[1].at - arrivals[0].at >= 2, "Retry-After was not honoured");
    }
  });
}

test("retry gives up", async () => {
  const key = randomUUID();
  const script = { key, refusals: 9, status: 429, retry_after: 1 };
  await assert.rejects(client(scripts, { maxRetries: 2 }).chat.completions.create({ model: scripts.model, messages, script }), OpenAI.RateLimitError);
  assert.equal((await received(key)).length, 3);
});

test("retry of Fairway's own refusal", async () => {
  // Uploads that lack their last byte hold the buffers.
  const { hostname, port } = new URL(cramped.url);
  const uploads = [];
  try {
    const asked = { model: cramped.model, messages: [{ role: "user", content: "x".repeat(4000) }] };
    const refused = (err) => err instanceof OpenAI.InternalServerError && err.status === 503 && err.type === "fairway_buffers_spent";
    for (;;) {
      const outcome = await client(cramped).chat.completions.create(asked).catch((err) => err);
      if (refused(outcome)) break;
      assert.ok(uploads.length < 500, `uploads do not count against limits.buffers: ${outcome}`);
      const upload = net.connect(Number(port), hostname);
      upload.on("error", () => {});
      upload.write("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n" + " ".repeat(3999));
      uploads.push(upload);
    }
    const statuses = [];
    const times = [];
    const watched = async (...args) => {
      const response = await fetch(...args);
      statuses.push(response.status);
      times.push(performance.now());
      for (const upload of uploads) upload.destroy();
      return response;
    };
    const answer = await client(cramped, { maxRetries: 2, fetch: watched }).chat.completions.create(asked);
    assert.equal(answer.choices[0].message.content, "Fine.");
    assert.deepEqual(statuses, [503, 200]);
    assert.ok(times[1] - times[0] >= 1000, "Retry-After was not honoured");
  } finally {
    for (const upload of uploads) upload.destroy();
  }
});

test("50 streams at once", async () => {
  const shared = client(target);
  const answers = await Promise.all(Array.from({ length: 50 }, async (_, i) => collect(await shared.chat.completions.create({
    model: target.model, messages: [{ role: "user", content: `Stream ${i}` }], stream: true, stream_options: { include_usage: true }, ...exactly(40),
  }))));
  assert.equal(new Set(answers.map((chunks) => chunks[0].id)).size, 50);
  for (const chunks of answers) {
    assert.equal(new Set(chunks.map((c) => c.id)).size, 1, "events of one stream got into another");
    assert.equal(chunks.at(-1).usage.completion_tokens, 40);
  }
});

test("pauses", async () => {
  const c = client(target);
  for (const pause of [0, 500, 3900, 5000, 5100]) {
    await sleep(pause);
    assert.ok((await c.chat.completions.create({ model: target.model, messages, max_tokens: 1 })).choices.length);
    await collect(await c.chat.completions.create({ model: target.model, messages, stream: true, ...exactly(4) }));
  }
});
