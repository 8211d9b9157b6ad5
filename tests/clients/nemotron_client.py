"""Clients that were made for Nemotron-4 340B: NeMo Curator's pipeline and rewards, and camel-ai's rewards.

NeMo Curator imports Dask, and camel-ai's reward models import PyTorch, although neither these prompts nor
these rewards need them. So two packages of NeMo Curator are used without their `__init__.py`, and an empty
module stands in for PyTorch meanwhile. All else is the packages' own code.
"""

import importlib.util
import os
import sys
import types
from pathlib import Path

import openai
from harness import ScriptedServer, Server, expect

ROOT = Path(importlib.util.find_spec("nemo_curator").origin).parent
for name, folder in [("nemo_curator", ROOT), ("nemo_curator.synthetic", ROOT / "synthetic")]:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]
from nemo_curator.services import OpenAIClient  # noqa: E402
from nemo_curator.synthetic.nemotron import NemotronGenerator  # noqa: E402

sys.modules["torch"] = types.ModuleType("torch")
from camel.models.reward import NemotronRewardModel  # noqa: E402

del sys.modules["torch"]

NUMBERS = ["two", "three"]
ATTRIBUTES = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
CONVERSATION = [
    {"role": "user", "content": "I am going to Paris, what should I see?"},
    {"role": "assistant", "content": "Paris has the Louvre, Notre-Dame and the river Seine."},
]


class Recorder(OpenAIClient):
    """Keeps the answers."""

    def __init__(self, client):
        super().__init__(client)
        self.answers = []

    def query_model(self, **kwargs):
        answers = super().query_model(**kwargs)
        self.answers += answers
        return answers


def client(server):
    return openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)


def each(numbers, items, form):
    return [form.format(item, number) for item in items for number in NUMBERS[:numbers]]


def test_the_open_question_pipeline(_demo, _scripted):
    server = ScriptedServer(sys.argv[2], "serve_lists")
    recorder = Recorder(client(server.endpoint))
    try:
        questions = NemotronGenerator(recorder).run_open_qa_pipeline(
            n_macro_topics=2, n_subtopics=1, n_openlines=2, n_revisions=2, model=server.endpoint.model
        )
    finally:
        server.process.kill()
    # The pipeline raises an error unless each list has its length and each item is in the answer before it.
    topics = each(2, ["our daily life, the world, and science"], "{1} parts of {0}")
    subtopics = each(1, topics, "{1} parts of {0}")
    lines = each(2, subtopics + topics, "What are the {1} main facts on {0}?")
    assert questions == each(2, lines, "{} Give {} reasons."), questions
    lists = 1 + len(topics) + len(subtopics + topics) + len(lines)
    assert len(recorder.answers) == 2 * lists, recorder.answers


def test_rewards_of_a_dialogue_by_both_clients(_demo, scripted):
    dialogue = NemotronGenerator(OpenAIClient(client(scripted))).generate_dialogue(
        openline="What is a tide?", user_model=scripted.model, assistant_model=scripted.model, n_user_turns=2,
        prompt_template="{conversation_history} ANSWER:Which is higher?",
    )
    questions = ["What is a tide?", "Which is higher?"]
    assert [turn["content"] for turn in dialogue] == [text for text in questions for _ in range(2)], dialogue
    assert [turn["role"] for turn in dialogue] == ["user", "assistant"] * 2, dialogue
    other = OpenAIClient(client(scripted))
    ask = lambda: other.query_reward_model(messages=CONVERSATION[:1], model=scripted.model)  # noqa: E731
    expect(ValueError, "likely not a reward model", ask)
    model = Path(sys.argv[3]).with_name("smollm2-135m-reward")
    server = Server(sys.argv[1], str(model), "reward")
    try:
        check_rewards(server.endpoint, [CONVERSATION, dialogue])
    finally:
        server.process.kill()


def check_rewards(server, conversations):
    # camel-ai wants the key in this variable, also where it is an argument.
    os.environ["NVIDIA_API_KEY"] = server.key
    camel = NemotronRewardModel(server.model, url=server.url)
    assert camel.get_scores_types() == ATTRIBUTES
    for messages in conversations:
        entry = client(server).post("/reward", body={"messages": messages}, cast_to=object)["data"][0]
        curator = OpenAIClient(client(server)).query_reward_model(messages=messages, model=server.model)
        assert list(curator) == ATTRIBUTES and curator == entry["values"], (curator, entry)
        assert camel.evaluate(messages) == entry["values"], entry
