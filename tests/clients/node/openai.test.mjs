// The official `openai` client for Node.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI, { toFile } from "openai";
import { zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { ASK, Fruit, PARIS, Place, demo, script, scripted } from "./servers.mjs";

const client = (server) => new OpenAI({ baseURL: server.url, apiKey: server.key, maxRetries: 0 });
const user = (content) => [{ role: "user", content }];
const weather = (more) => zodFunction({ name: "weather", description: "Tells the weather.", parameters: Place, ...more });

test("a stream has the text of the whole answer", async () => {
  const request = { model: demo.model, messages: user("Name three fruits."), max_tokens: 12, temperature: 0 };
  const whole = await client(demo).chat.completions.create(request);
  let text = "";
  for await (const chunk of await client(demo).chat.completions.create({ ...request, stream: true })) {
    text += chunk.choices[0].delta.content ?? "";
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(whole.usage.completion_tokens, 12);
});

test("parse returns an object of the schema, also from a stream", async () => {
  const request = { model: demo.model, messages: user(ASK), max_tokens: 60, temperature: 0 };
  request.response_format = zodResponseFormat(Fruit, "fruit");
  const parsed = await client(demo).chat.completions.parse(request);
  Fruit.parse(parsed.choices[0].message.parsed);
  const final = await client(demo).chat.completions.stream(request).finalChatCompletion();
  Fruit.parse(final.choices[0].message.parsed);
});

test("json_object, and a schema that cannot be enforced", async () => {
  const request = { model: demo.model, messages: user(ASK), max_tokens: 20 };
  const answer = await client(demo).chat.completions.create({ ...request, response_format: { type: "json_object" } });
  assert.match(answer.choices[0].message.content, /^\s*\{/);
  const format = { type: "json_schema", json_schema: { name: "x", schema: { not: {} } } };
  const refused = client(demo).chat.completions.create({ ...request, response_format: format });
  await assert.rejects(refused, (error) => error.status === 400 && error.param === "response_format.json_schema.schema");
});

test("every tool_choice", async () => {
  const choose = async (server, content, tool_choice) => {
    const tools = [weather()];
    const request = { model: server.model, messages: user(content), tools, tool_choice, max_tokens: 200 };
    request.temperature = 0;
    if (tool_choice === "required") request.parallel_tool_calls = false;
    return (await client(server).chat.completions.parse(request)).choices[0];
  };
  for (const choice of ["required", { type: "function", function: { name: "weather" } }]) {
    const { message } = await choose(demo, ASK, choice);
    Place.parse(message.tool_calls[0].function.parsed_arguments);
  }
  const auto = await choose(scripted, script("weather", PARIS), "auto");
  assert.deepEqual(auto.message.tool_calls[0].function.parsed_arguments, { city: "Paris" });
  assert.equal(auto.finish_reason, "tool_calls");
  const none = await choose(scripted, script("weather", PARIS), "none");
  assert.equal(none.message.tool_calls?.length ?? 0, 0);
});

test("runTools calls the function and sends its result, whole and streamed", async () => {
  const tool = weather({ function: ({ city }) => `sunny in ${city}` });
  for (const stream of [false, true]) {
    const request = { model: scripted.model, messages: user(script("weather", PARIS)), tools: [tool], stream };
    const runner = client(scripted).chat.completions.runTools(request);
    assert.equal(await runner.finalContent(), "The tools say: sunny in Paris");
  }
});

test("an aborted stream ends", async () => {
  const request = { model: demo.model, messages: user(ASK), max_tokens: 500, ignore_eos: true, stream: true };
  const stream = await client(demo).chat.completions.create(request);
  let chunks = 0;
  for await (const _ of stream) {
    if (++chunks === 2) stream.controller.abort();
  }
  assert(chunks < 100);
});

test("a response, whole and streamed", async () => {
  const request = { model: demo.model, input: "Name three fruits.", max_output_tokens: 12, temperature: 0 };
  const whole = await client(demo).responses.create(request);
  assert.equal(whole.status, "incomplete");
  assert.equal(whole.usage.output_tokens, 12);
  let text = "";
  const kinds = new Set();
  for await (const event of await client(demo).responses.create({ ...request, stream: true })) {
    kinds.add(event.type);
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, whole.output_text);
  assert(["response.created", "response.output_item.done", "response.incomplete"].every((kind) => kinds.has(kind)));
  const final = await client(demo).responses.stream(request).finalResponse();
  assert.equal(final.output_text, whole.output_text);
});

test("a response of a schema, also from a stream", async () => {
  const request = { model: demo.model, input: ASK, max_output_tokens: 60, temperature: 0 };
  request.text = { format: zodTextFormat(Fruit, "fruit") };
  Fruit.parse((await client(demo).responses.parse(request)).output_parsed);
  Fruit.parse((await client(demo).responses.stream(request).finalResponse()).output_parsed);
});

test("a response calls a function, and its result goes back", async () => {
  const tools = [zodResponsesFunction({ name: "weather", parameters: Place })];
  const input = [{ role: "user", content: script("weather", PARIS) }];
  const { output } = await client(scripted).responses.parse({ model: scripted.model, input, tools });
  const call = output.find((item) => item.type === "function_call");
  assert.deepEqual(call.parsed_arguments, { city: "Paris" });
  input.push(...output, { type: "function_call_output", call_id: call.call_id, output: "sunny" });
  const answer = await client(scripted).responses.create({ model: scripted.model, input, tools });
  assert.equal(answer.output_text, "The tools say: sunny");
  const forced = { model: demo.model, input: ASK, tools, tool_choice: "required", max_output_tokens: 200 };
  // The demo model may not stop calling, and its last call is cut off then.
  Object.assign(forced, { parallel_tool_calls: false, temperature: 0 });
  const calls = (await client(demo).responses.parse(forced)).output;
  Place.parse(calls.at(-1).parsed_arguments);
});

test("what is not stored is refused by name", async () => {
  const earlier = client(demo).responses.create({ model: demo.model, input: ASK, previous_response_id: "resp_1" });
  await assert.rejects(earlier, (error) => error.param === "previous_response_id");
  await assert.rejects(client(demo).responses.retrieve("resp_1"), (error) => error.status === 404);
});

test("a file is uploaded, and a batch runs its lines", async () => {
  const { files, batches } = client(demo);
  const endpoint = "/v1/chat/completions";
  const lines = [user(ASK), []].map((messages, i) => {
    const body = { model: demo.model, messages, max_tokens: 8 };
    return `${JSON.stringify({ custom_id: `line-${i}`, method: "POST", url: endpoint, body })}\n`;
  });
  const upload = await toFile(Buffer.from(lines.join("")), "lines.jsonl");
  const file = await files.create({ file: upload, purpose: "batch" });
  assert.equal(file.filename, "lines.jsonl");
  assert.equal(await (await files.content(file.id)).text(), lines.join(""));
  let batch = await batches.create({ input_file_id: file.id, endpoint, completion_window: "24h" });
  while (["validating", "in_progress", "finalizing"].includes(batch.status)) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    batch = await batches.retrieve(batch.id);
  }
  assert.deepEqual(batch.request_counts, { total: 2, completed: 1, failed: 1 });
  const result = async (id) => JSON.parse(await (await files.content(id)).text());
  const good = await result(batch.output_file_id);
  assert.equal(good.custom_id, "line-0");
  assert(good.response.body.choices[0].message.content);
  assert.equal((await result(batch.error_file_id)).response.status_code, 400);
  const listed = [];
  for await (const entry of batches.list({ limit: 1 })) listed.push(entry.id);
  assert.deepEqual(listed, [batch.id]);
  await assert.rejects(batches.cancel(batch.id), (error) => error.status === 409);
  for await (const entry of files.list()) assert((await files.delete(entry.id)).deleted);
});
