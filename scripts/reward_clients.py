#!/usr/bin/env python3
r"""Runs the clients of NVIDIA's reward model, and calls of trainers, against Octant.

    pip install --no-deps nemo-curator==0.9.0 camel-ai==0.2.90
    pip install dask distributed pandas pyarrow regex ftfy datasets fasttext==0.9.3 sentencepiece \
        comment_parser requests platformdirs transformers openai pyyaml tqdm beautifulsoup4 colorama pillow
    octant serve demo/smollm2-135m-instruct --port 8811 &
    octant serve demo/smollm2-135m-reward --port 8812 &
    python scripts/reward_clients.py http://127.0.0.1:8811 http://127.0.0.1:8812

NeMo Curator's own classes run its open-question pipeline and a dialogue, and ask for the dialogue's reward;
so does camel-ai's. The small chat model writes the pipeline's lists within a grammar that the requests have
in addition. The calls of NVIDIA's examples, of OpenRLHF and of verl are made again with the same fields. Each
value must equal that of `/v1/reward`, bit for bit. `--only NAME` runs one part. Exits with 1 on a difference.
"""

import argparse
import importlib.util
import math
import os
import re
import sys
import time
import types

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


class Servers:
    """The two servers and their models."""

    def __init__(self, chat_url, reward_url):
        self.chat_url, self.reward_url = chat_url.rstrip("/"), reward_url.rstrip("/")
        self.chat = self.client(self.chat_url)
        self.reward = self.client(self.reward_url)
        self.chat_model = self.chat.models.list().data[0].id
        self.reward_model = self.reward.models.list().data[0].id

    @staticmethod
    def client(url):
        return openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=180, max_retries=3)

    def post(self, path, body):
        reply = requests.post(self.reward_url + path, json=body, timeout=180)
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


def camel(servers):
    """`NemotronRewardModel.evaluate` of camel-ai."""
    # camel-ai imports PyTorch for another reward model, and wants a key in the environment.
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch:
        sys.modules["torch"] = types.ModuleType("torch")
    os.environ.setdefault("NVIDIA_API_KEY", "none")
    from camel.models.reward import NemotronRewardModel

    if not has_torch:
        del sys.modules["torch"]
    model = NemotronRewardModel(servers.reward_model, url=f"{servers.reward_url}/v1")
    assert model.get_scores_types() == ATTRIBUTES, model.get_scores_types()
    for messages in [CONVERSATION, LONGER]:
        scores = model.evaluate(messages)
        assert list(scores) == ATTRIBUTES, scores
        assert scores == servers.entry(messages)["values"], scores
        print("  ", scores)


def nvidia(servers):
    """The example of NVIDIA's API catalogue, whose text is parsed as NIM's documentation says."""
    call = {"model": servers.reward_model, "messages": CONVERSATION}
    values = servers.entry(CONVERSATION)["values"]
    for more in [{}, {"stream": False}, {"temperature": 0, "max_tokens": 1}]:
        reply = servers.reward.chat.completions.create(**call, **more)
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
            servers.reward.chat.completions.create(**{**call, **body})
        except openai.BadRequestError as error:
            assert what in str(error), error
            print("   400:", error.body["message"])
        else:
            raise AssertionError(f"{body}: expected status 400, got an answer")


def openrlhf(servers):
    """OpenRLHF's `--reward.remote_url`: a query, a prompt and a label for each request."""
    for messages in [CONVERSATION, LONGER]:
        prompt, query = chatml(messages[:-1]) + "<|im_start|>assistant\n", chatml(messages)
        reply = servers.post("/get_reward", {"query": [query], "prompts": [prompt], "labels": [""]})
        entry = servers.entry(messages)
        assert reply["rewards"] == reply["scores"] == [entry["score"]], (reply, entry)
        assert reply["extra_logs"] == {name: [value] for name, value in entry["values"].items()}, reply
        print("  ", reply)
    # Earlier versions send several queries and no labels.
    both = servers.post("/get_reward", {"query": [chatml(CONVERSATION), chatml(LONGER)]})
    assert both["rewards"] == [servers.entry(m)["score"] for m in [CONVERSATION, LONGER]], both


def verl(servers):
    """verl's reward loop with vLLM: a conversation as text, of which it reads the last value."""
    for messages in [CONVERSATION, LONGER]:
        body = {"model": servers.reward_model, "input": chatml(messages), "use_activation": False}
        entry = servers.entry(messages)
        classes = servers.post("/classify", body)
        assert classes["object"] == "list" and classes["id"].startswith("classify-"), classes
        assert classes["data"][-1]["probs"][-1] == entry["score"], (classes, entry)
        assert classes["data"][-1]["num_classes"] == 1, classes
        pooled = servers.post("/pooling", body)
        assert pooled["data"][-1]["data"][-1] == entry["score"], (pooled, entry)
        for path, key in [("/classify", "probs"), ("/pooling", "data")]:
            row = servers.post(path, {**body, "return_attributes": True})["data"][-1][key]
            assert row == [*entry["values"].values(), entry["score"]], (path, row, entry)
        print("  ", classes["data"], pooled["data"])


class ListsInGrammar:
    """The openai client for NeMo Curator, with a grammar in each request that asks for a list.

    An answer is a numbered list of as many items as the prompt's last number says, and the answer about it is
    the same items as YAML.
    """

    ITEM = r"[A-Z][a-z]{1,9}( [a-z]{1,9}){2,5}[.?]"

    def __init__(self, client):
        self.chat = types.SimpleNamespace(completions=self)
        self.client, self.calls = client, []

    def create(self, **body):
        prompt = body["messages"][-1]["content"]
        if "yaml list of strings" in prompt:
            items = re.findall(r"^ ?\d\. (.*)$", prompt, re.MULTILINE)
            limit = {"choice": ["".join(f"- {item}\n" for item in items)]}
        else:
            count = int([word for word in prompt.split() if word.isdigit()][-1])
            limit = {"regex": "".join(rf"{n}\. {self.ITEM}\n" for n in range(1, count + 1))}
        reply = self.client.chat.completions.create(**body, extra_body={"structured_outputs": limit})
        self.calls.append((prompt, reply.choices[0].message.content))
        return reply


def open_questions(servers):
    """NeMo Curator's pipeline of open questions, all four stages, every list converted."""
    from nemo_curator import OpenAIClient
    from nemo_curator.synthetic import NemotronGenerator

    client = ListsInGrammar(servers.chat)
    questions = NemotronGenerator(OpenAIClient(client)).run_open_qa_pipeline(
        n_macro_topics=2, n_subtopics=1, n_openlines=1, n_revisions=1, model=servers.chat_model,
        base_model_kwargs={"temperature": 0.8, "top_p": 0.9, "max_tokens": 96, "seed": 1},
        conversion_model_kwargs={"temperature": 0, "max_tokens": 96}, combine_topics=False,
    )
    for prompt, answer in client.calls:
        print(f"   {prompt[:60]!r}… {answer!r}")
    # Two topics, and for each a subtopic, a question about it and a revised question.
    assert len(questions) == 2 and all(len(question.split()) >= 3 for question in questions), questions
    assert len(client.calls) == 2 * (1 + 2 + 2 + 2), len(client.calls)
    print(f"   {len(client.calls)} requests, {len(questions)} questions: {questions}")


def curator(servers):
    """NeMo Curator's dialogue and its reward query."""
    from nemo_curator import OpenAIClient
    from nemo_curator.synthetic import NemotronGenerator

    client = OpenAIClient(servers.chat)
    generator = NemotronGenerator(client)
    base = {"temperature": 0.2, "top_p": 0.7, "max_tokens": 24, "seed": 1}
    dialogue = generator.generate_dialogue(
        openline="What is a tide?", user_model=servers.chat_model, assistant_model=servers.chat_model,
        n_user_turns=2, user_model_kwargs=base, assistant_model_kwargs=base,
    )
    assert [turn["role"] for turn in dialogue] == ["user", "assistant"] * 2, dialogue
    print("   dialogue:", dialogue)
    for messages in [CONVERSATION, dialogue]:
        scores = OpenAIClient(servers.reward).query_reward_model(
            messages=messages, model=servers.reward_model
        )
        assert list(scores) == ATTRIBUTES and scores == servers.entry(messages)["values"], scores
        print("   rewards:", scores)
    try:
        question = [{"role": "user", "content": "Say only the word yes."}]
        client.query_reward_model(messages=question, model=servers.chat_model)
    except ValueError as error:
        assert "likely not a reward model" in str(error), error
    else:
        raise AssertionError("expected an error of the reward query to a model that generates")


PARTS = {part.__name__: part for part in [camel, nvidia, openrlhf, verl, open_questions, curator]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("chat_url")
    parser.add_argument("reward_url")
    parser.add_argument("--only", choices=PARTS)
    args = parser.parse_args()
    servers, failed = Servers(args.chat_url, args.reward_url), []
    for name in [args.only] if args.only else PARTS:
        began = time.monotonic()
        print(f"{name}: {PARTS[name].__doc__.splitlines()[0]}", flush=True)
        try:
            PARTS[name](servers)
        except (AssertionError, openai.OpenAIError) as error:
            print(f"   failed: {error}")
            failed.append(name)
        print(f"   {time.monotonic() - began:.1f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    print("all parts passed")


if __name__ == "__main__":
    main()
