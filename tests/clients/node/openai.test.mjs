// The official `openai` client for Node.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
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
  const request = { model: demo.model, messages: user(ASK), max_tokens: 60 };
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
