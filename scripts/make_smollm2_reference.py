#!/usr/bin/env python3
"""Writes transformers' results for the demo model, for tests/device/smollm2.rs.

    python3 scripts/make_smollm2_reference.py demo/smollm2-135m-instruct     (requires torch and transformers)

Writes tests/data/smollm2/reference.json. For ten prompts it holds the ids of the rendered chat and the greedy
answer in float32, with the margin between the two largest logits at each step. `bf16_worst` is the largest
difference of a log-probability between transformers' float32 and bfloat16 runs; a margin below it counts as a
tie. The file also holds the ids of a fixed text and its perplexity.
"""

import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = [
    "What is the capital of France?",
    "Name three fruits.",
    "Write one sentence about the sea.",
    "What is 12 plus 7?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Give me a word that rhymes with 'light'.",
    "List the days of the week.",
    "Who wrote Romeo and Juliet?",
    "Explain what a prime number is.",
]
TOKENS = 24
TEXT = (
    "The harbour lay quiet in the early morning. A thin "
    "fog covered the water, and the boats along the pier moved\n"
    "a little with each small wave. An old man sat on a "
    "wooden box and repaired a net, as he had done every morning for\n"
    "thirty years. He did not look up when the first gulls "
    "began to call, nor when the bakery across the street opened its\n"
    "doors and the smell of fresh bread reached the shore. His "
    "hands knew the work. They found the broken threads, cut them\n"
    "away, and tied new ones in their place, one knot after "
    "another. When the sun rose over the hills, the fog turned gold\n"
    "and then disappeared, and the town behind him woke up. Children "
    "ran to school, a bus stopped at the corner, and two\n"
    "women argued about the price of fish. The man folded his net, "
    "stood up slowly, and walked to his boat. There was a good\n"
    "wind from the west, and the day would be long."
)


@torch.no_grad()
def main() -> None:
    directory = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    half = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    prompts, worst = [], 0.0
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        answer, margins = greedy(model, ids, tokenizer.eos_token_id)
        whole = torch.tensor([ids + answer])
        worst = max(worst, (scores(model, whole) - scores(half, whole)).abs().max().item())
        prompts.append({"question": question, "ids": ids, "greedy": answer, "margins": margins})
    text = tokenizer(TEXT)["input_ids"]
    perplexity = math.exp(-scores(model, torch.tensor([text])).mean().item())
    out = Path(__file__).resolve().parent.parent / "tests/data/smollm2/reference.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    data = {"bf16_worst": worst, "prompts": prompts, "text": text, "perplexity": perplexity}
    out.write_text(json.dumps(data) + "\n")
    print(f"bf16_worst {worst:.4f}, perplexity {perplexity:.4f} over {len(text)} tokens")


def scores(model, ids):
    """Returns the log-probability of each token after the first."""
    rows = model(ids).logits[0].float().log_softmax(-1)
    return rows[:-1].gather(1, ids[0, 1:, None])[:, 0]


def greedy(model, ids, eos):
    """Returns a greedy answer of at most TOKENS tokens, and the margin at each step."""
    ids, answer, margins = torch.tensor([ids]), [], []
    while len(answer) < TOKENS and (not answer or answer[-1] != eos):
        top = model(ids).logits[0, -1].topk(2)
        answer.append(top.indices[0].item())
        margins.append(round((top.values[0] - top.values[1]).item(), 4))
        ids = torch.cat([ids, top.indices[None, :1]], 1)
    return answer, margins


if __name__ == "__main__":
    main()
