#!/usr/bin/env python3
"""Makes the calls of NVIDIA's examples, of OpenRLHF and of verl for rewards against Octant.

    pip install openai requests
    octant serve demo/smollm2-135m-reward --port 8812 &
    python scripts/reward_clients.py http://127.0.0.1:8812

Each value must equal that of `/v1/reward`, bit for bit. `--only NAME` runs one part. Exits with 1 on a
difference. `tests/clients/nemotron_client.py` does the same with NeMo Curator and camel-ai themselves.
"""

import argparse
import math
import sys
import time

import openai
import requests

ATTRIBUTES = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
# Weights of the model card of Nemotron-4-340B-Reward.
WEIGHTS = [0.3, 0.74, 0.46, 0.47, -0.33]
CONVERSATION = [
    {"role": "user", "content": "I am going to Paris, what should I see?"},
    {
        "role": "assistant",
        "content": "Paris has much to see: the Eiffel Tower, the Louvre, Notre-Dame and the river Seine.",
    },
]
LONGER = [
    *CONVERSATION,
    {"role": "user", "content": "Which of them is free?"},
    {"role": "assistant", "content": "A walk along the Seine costs nothing."},
]


class Server:
    """The server and its model."""

    def __init__(self, url):
        self.url = url.rstrip("/")
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=180, max_retries=3)
        self.model = self.client.models.list().data[0].id

    def post(self, path, body):
        reply = requests.post(self.url + path, json=body, timeout=180)
        assert reply.status_code == 200, f"{path}: {reply.status_code} {reply.text}"
        return reply.json()

    def entry(self, messages):
        """The score and the values of a conversation, from `/v1/reward`."""
        (entry,) = self.post("/v1/reward", {"messages": messages})["data"]
        assert list(entry["values"]) == ATTRIBUTES, entry
        total = sum(entry["values"][name] * weight for name, weight in zip(ATTRIBUTES, WEIGHTS))
        assert math.isclose(entry["score"], total, rel_tol=1e-6, abs_tol=1e-6), (entry, total)
        return entry


def chatml(messages):
    """A conversation as text, as the tokenizer of a policy with ChatML writes it."""
    return "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)


def nvidia(server):
    """The example of NVIDIA's API catalogue, whose text is parsed as NIM's documentation says."""
    call = {"model": server.model, "messages": CONVERSATION}
    values = server.entry(CONVERSATION)["values"]
    for more in [{}, {"stream": False}, {"temperature": 0, "max_tokens": 1}]:
        reply = server.client.chat.completions.create(**call, **more)
        choice, usage = reply.choices[0], reply.usage
        parsed = dict(part.split(":") for part in choice.message.content.split(","))
        assert list(parsed) == ATTRIBUTES, choice.message.content
        for token in choice.logprobs.content:
            assert float(parsed[token.token]) == token.logprob == values[token.token], token
            assert token.bytes is None and token.top_logprobs == [], token
        assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant"), choice
        assert len(reply.choices) == 1 and reply.object == "chat.completion", reply
        assert usage.completion_tokens == 1 and usage.total_tokens == usage.prompt_tokens + 1, usage
    print("  ", choice.message.content)
    for body, what in [({"stream": True}, "stream"), ({"messages": CONVERSATION[:1]}, "messages")]:
        try:
            server.client.chat.completions.create(**{**call, **body})
        except openai.BadRequestError as error:
            assert what in str(error), error
            print("   400:", error.body["message"])
        else:
            raise AssertionError(f"{body}: expected status 400, got an answer")


def openrlhf(server):
    """OpenRLHF's `--reward.remote_url`: a query, a prompt and a label for each request."""
    for messages in [CONVERSATION, LONGER]:
        prompt, query = chatml(messages[:-1]) + "<|im_start|>assistant\n", chatml(messages)
        reply = server.post("/get_reward", {"query": [query], "prompts": [prompt], "labels": [""]})
        entry = server.entry(messages)
        assert reply["rewards"] == reply["scores"] == [entry["score"]], (reply, entry)
        assert reply["extra_logs"] == {name: [value] for name, value in entry["values"].items()}, reply
        print("  ", reply)
    # Earlier versions send several queries and no labels.
    both = server.post("/get_reward", {"query": [chatml(CONVERSATION), chatml(LONGER)]})
    assert both["rewards"] == [server.entry(m)["score"] for m in [CONVERSATION, LONGER]], both


def verl(server):
    """verl's reward loop with vLLM: a conversation as text, of which it reads the last value."""
    for messages in [CONVERSATION, LONGER]:
        body = {"model": server.model, "input": chatml(messages), "use_activation": False}
        entry = server.entry(messages)
        classes = server.post("/classify", body)
        assert classes["object"] == "list" and classes["id"].startswith("classify-"), classes
        assert classes["data"][-1]["probs"][-1] == entry["score"], (classes, entry)
        assert classes["data"][-1]["num_classes"] == 1, classes
        pooled = server.post("/pooling", body)
        assert pooled["data"][-1]["data"][-1] == entry["score"], (pooled, entry)
        for path, key in [("/classify", "probs"), ("/pooling", "data")]:
            row = server.post(path, {**body, "return_attributes": True})["data"][-1][key]
            assert row == [*entry["values"].values(), entry["score"]], (path, row, entry)
        print("  ", classes["data"], pooled["data"])


PARTS = {part.__name__: part for part in [nvidia, openrlhf, verl]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--only", choices=PARTS)
    args = parser.parse_args()
    server, failed = Server(args.url), []
    for name in [args.only] if args.only else PARTS:
        began = time.monotonic()
        print(f"{name}: {PARTS[name].__doc__.splitlines()[0]}", flush=True)
        try:
            PARTS[name](server)
        except (AssertionError, openai.OpenAIError) as error:
            print(f"   failed: {error}")
            failed.append(name)
        print(f"   {time.monotonic() - began:.1f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    print("all parts passed")


if __name__ == "__main__":
    main()
