// Vercel's AI SDK, by its providers for OpenAI (responses, which are its default, and chat) and for servers that
// are compatible.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { ASK, Fruit, PARIS, Place, demo, script, scripted } from "./servers.mjs";

const providers = {
  "@ai-sdk/openai by default": ({ url, key, model }) => createOpenAI({ baseURL: url, apiKey: key })(model),
  "@ai-sdk/openai by chat": ({ url, key, model }) => createOpenAI({ baseURL: url, apiKey: key }).chat(model),
  "@ai-sdk/openai-compatible": ({ url, key, model }) =>
    createOpenAICompatible({ name: "octant", baseURL: url, apiKey: key, supportsStructuredOutputs: true })(model),
};
const weather = tool({
  description: "Tells the weather of a city.",
  inputSchema: Place,
  execute: async ({ city }) => `sunny in ${city}`,
});

for (const [name, provider] of Object.entries(providers)) {
  const brief = { model: provider(demo), maxOutputTokens: 60, maxRetries: 0, temperature: 0 };
  const scriptedRun = {
    model: provider(scripted),
    prompt: script("weather", PARIS, "I will look. "),
    tools: { weather },
    stopWhen: stepCountIs(3),
    maxRetries: 0,
    // Without it, the second step of the default provider names items of the first one, which no server keeps.
    providerOptions: { openai: { store: false } },
  };

  test(`${name}: text, whole and streamed`, async () => {
    const request = { ...brief, prompt: "Name three fruits.", temperature: 0, maxOutputTokens: 12 };
    const whole = await generateText(request);
    const parts = [];
    const stream = streamText(request);
    for await (const part of stream.textStream) parts.push(part);
    assert.equal(parts.join(""), whole.text);
    assert.equal(whole.usage.outputTokens, 12);
    assert.equal(await stream.finishReason, "length");
  });

  test(`${name}: objects, whole and streamed`, async () => {
    Fruit.parse((await generateObject({ ...brief, schema: Fruit, prompt: ASK })).object);
    const stream = streamObject({ ...brief, schema: Fruit, prompt: ASK });
    let partial = 0;
    for await (const _ of stream.partialObjectStream) partial += 1;
    Fruit.parse(await stream.object);
    assert(partial > 1);
    const output = Output.object({ schema: Fruit });
    Fruit.parse((await generateText({ ...brief, output, prompt: ASK })).output);
    const kind = await generateObject({ ...brief, output: "enum", enum: ["sun", "rain"], prompt: ASK });
    assert(["sun", "rain"].includes(kind.object));
  });

  test(`${name}: a tool is called and its result goes back`, async () => {
    const whole = await generateText(scriptedRun);
    assert.equal(whole.text, "The tools say: sunny in Paris");
    assert.deepEqual(whole.steps[0].toolCalls[0].input, { city: "Paris" });
    assert.equal(whole.steps[0].finishReason, "tool-calls");
    const stream = streamText(scriptedRun);
    const kinds = [];
    for await (const part of stream.fullStream) kinds.push(part.type);
    assert.equal(await stream.text, "The tools say: sunny in Paris");
    assert(kinds.filter((kind) => kind === "tool-input-delta").length > 1, kinds.join());
  });

  test(`${name}: forced tools`, async () => {
    for (const toolChoice of ["required", { type: "tool", toolName: "weather" }]) {
      const request = { ...brief, maxOutputTokens: 80, prompt: ASK, tools: { weather }, toolChoice };
      const { toolCalls } = await generateText(request);
      Place.parse(toolCalls[0].input);
    }
    const none = await generateText({ ...scriptedRun, toolChoice: "none" });
    assert.equal(none.toolCalls.length, 0);
  });
}
