// The servers, as tests/clients/run.py names them.
import { z } from "zod";

const { demo, scripted } = JSON.parse(process.env.OCTANT_SERVERS);
export { demo, scripted };

export const ASK = "Which fruit do you like, and how many?";
export const PARIS = '{"city": "Paris"}';
export const Fruit = z.object({
  name: z.enum(["apple", "banana", "cherry"]),
  count: z.number().int().min(0).max(99),
});
export const Place = z.object({ city: z.enum(["Paris", "Rome"]) });

// A message to which the scripted model answers with a call.
export const script = (name, text, before = "") =>
  `How is the weather? ANSWER:${before}<tool_call>\n{"name": "${name}", "arguments": ${text}}\n</tool_call>`;
