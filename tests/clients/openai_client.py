"""Tests an Octant server, started here, with the official `openai` client.

    openai_client.py OCTANT_BINARY MODEL_DIRECTORY
"""

import json
import re
import signal
import sys
import tempfile
import threading
import time
import urllib.request

import openai
from harness import KEY, NAME, Server, run_tests
from openai import OpenAI

FRUITS = [{"role": "user", "content": "Name three fruits."}]
TESTS = []


def test(function):
    TESTS.append(function)
    return function


class TestedServer(Server):
    """A server whose metrics show what clients cause."""

    def client(self, key: str = KEY) -> OpenAI:
        return OpenAI(base_url=f"{self.root}/v1", api_key=key, max_retries=0, timeout=60)

    def metric(self, pattern: str) -> int:
        request = urllib.request.Request(f"{self.root}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        text = urllib.request.urlopen(request, timeout=5).read().decode()
        return int(float(re.search(pattern + r"\{[^}]*\} (\S+)", text).group(1)))

    def blocks_used(self) -> int:
        return self.metric(r'octant_kv_blocks(?=\{[^}]*state="used")')

    def generated(self) -> int:
        return self.metric("vllm:generation_tokens_total")

    def wait_for_no_blocks(self) -> None:
        # Aborting takes one step, which is a few milliseconds. An answer that ran on would take seconds.
        deadline = time.monotonic() + 1
        while self.blocks_used() > 0:
            assert time.monotonic() < deadline, f"{self.blocks_used()} KV blocks still in use"
            time.sleep(0.02)


def chat(client: OpenAI, messages=FRUITS, **more):
    more.setdefault("temperature", 0)
    more.setdefault("max_tokens", 24)
    return client.chat.completions.create(model=NAME, messages=messages, **more)


@test
def answers_a_question(server):
    # The model names the author by a clear margin. Answers with near-ties differ between instruction sets.
    question = [{"role": "user", "content": "Who wrote Romeo and Juliet?"}]
    answer = chat(server.client(), question, max_tokens=64, stop=["."])
    assert "Shakespeare" in answer.choices[0].message.content, answer
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@test
def a_stream_has_the_same_text_as_a_whole_answer(server):
    whole = chat(server.client())
    chunks = list(chat(server.client(), stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert [c.choices[0].delta.role for c in chunks if c.choices[0].delta.role] == ["assistant"]
    finishes = [c for c in chunks if c.choices[0].finish_reason]
    assert len(finishes) == 1 and finishes[0] is chunks[-1] and finishes[0].choices[0].delta.content is None
    assert all(c.usage is None for c in chunks)


@test
def usage_comes_last_and_only_on_request(server):
    chunks = list(chat(server.client(), stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24
    assert all(c.usage is None and c.choices for c in chunks[:-1])


@test
def n_choices_differ_and_are_complete(server):
    answer = chat(server.client(), n=2, temperature=1.0, seed=3)
    assert [c.index for c in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content
    assert answer.usage.completion_tokens <= 48


@test
def a_seed_makes_an_answer_repeatable(server):
    client = server.client()
    answers = [chat(client, temperature=1.0, seed=seed) for seed in (7, 7, 8)]
    first, again, other = (answer.choices[0].message.content for answer in answers)
    assert first == again
    assert first != other


@test
def logprobs_carry_the_bytes_of_the_text(server):
    choice = chat(server.client(), logprobs=True, top_logprobs=3).choices[0]
    entries = choice.logprobs.content
    assert bytes(b for e in entries for b in e.bytes).decode() == choice.message.content
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token, "greedy decoding takes the most probable token"


@test
def a_stop_string_ends_the_answer_before_it(server):
    whole = chat(server.client()).choices[0].message.content
    stop = whole[8:12]
    choice = chat(server.client(), stop=[stop]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content == whole[: whole.index(stop)]


@test
def completions_echo_with_logprobs(server):
    client = server.client()
    answer = client.completions.create(
        model=NAME, prompt="The sky is blue", echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    scored = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith("The sky is blue")
    assert scored.token_logprobs[0] is None and all(x <= 0 for x in scored.token_logprobs[1:])
    assert len(scored.tokens) == len(scored.token_logprobs) == len(scored.text_offset)
    assert "".join(scored.tokens) == answer.choices[0].text


@test
def several_prompts_give_several_choices(server):
    prompts = ["One, two,", "Red,"]
    answer = server.client().completions.create(model=NAME, prompt=prompts, max_tokens=4, temperature=0)
    assert [c.index for c in answer.choices] == [0, 1]


@test
def errors_have_the_expected_class_code_and_param(server):
    client = server.client()
    expect(openai.BadRequestError, None, "temperature", lambda: chat(client, temperature=-1))
    tools = [{"type": "function", "function": {"name": "not a name"}}]
    expect(openai.BadRequestError, None, "tools[0].function.name", lambda: chat(client, tools=tools))
    audio = {"voice": "alloy", "format": "wav"}
    expect(openai.BadRequestError, None, "audio", lambda: chat(client, audio=audio))
    long = [{"role": "user", "content": "word " * 2000}]
    expect(openai.BadRequestError, "context_length_exceeded", "messages", lambda: chat(client, long))
    expect(openai.NotFoundError, "model_not_found", "model", lambda: client.models.retrieve("other"))
    # Out of scope.
    embed = {"model": NAME, "input": "a"}
    expect(openai.NotFoundError, None, None, lambda: client.embeddings.create(**embed))
    expect(openai.AuthenticationError, "invalid_api_key", None, lambda: chat(server.client("wrong")))


def expect(kind, code, param, call):
    try:
        call()
    except kind as error:
        assert code is None or error.code == code, error
        assert param is None or error.param == param, error
        return
    raise AssertionError(f"expected {kind.__name__}")


@test
def models_are_listed(server):
    assert [m.id for m in server.client().models.list()] == [NAME]


@test
def an_aborted_stream_frees_its_blocks(server):
    before = server.generated()
    stream = chat(server.client(), stream=True, max_tokens=900, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert server.blocks_used() > 0
    stream.close()
    server.wait_for_no_blocks()
    assert server.generated() - before < 450, "the server went on generating"


@test
def an_aborted_plain_request_frees_its_blocks(server):
    before, used = server.generated(), []
    impatient = server.client().with_options(timeout=0.3)
    watch = threading.Timer(0.15, lambda: used.append(server.blocks_used()))
    watch.start()
    try:
        chat(impatient, max_tokens=900, extra_body={"ignore_eos": True})
        raise AssertionError("900 tokens in 0.3 s")
    except openai.APITimeoutError:
        server.wait_for_no_blocks()
    watch.join()
    assert used[0] > 0, "the request never ran"
    assert server.generated() - before < 450, "the server went on generating"


@test
def a_batch_runs_from_upload_to_results(server):
    client = server.client()
    bodies = [{"model": NAME, "messages": FRUITS, "max_tokens": 8}, {"model": NAME, "messages": []}]
    lines = [
        {"custom_id": f"line-{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file = client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
    assert client.files.content(file.id).text == text and client.files.retrieve(file.id).bytes == len(text)
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"run": "1"},
    )
    deadline = time.monotonic() + 60
    while client.batches.retrieve(batch.id).status != "completed":
        assert time.monotonic() < deadline, client.batches.retrieve(batch.id)
        time.sleep(0.05)
    batch = client.batches.retrieve(batch.id)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (2, 1, 1), batch
    good = json.loads(client.files.content(batch.output_file_id).text)
    answer = good["response"]["body"]["choices"][0]["message"]["content"]
    assert good["custom_id"] == "line-0" and answer, good
    bad = json.loads(client.files.content(batch.error_file_id).text)
    assert bad["custom_id"] == "line-1" and bad["response"]["status_code"] == 400, bad
    assert [listed.id for listed in client.batches.list(limit=1)] == [batch.id]
    assert len(list(client.files.list())) == 3
    assert client.files.delete(file.id).deleted
    try:
        client.batches.cancel(batch.id)
        raise AssertionError("a batch that has ended was cancelled")
    except openai.ConflictError:
        pass


@test
def a_stream_under_way_survives_sigterm_and_the_server_exits_0(server):
    stream = chat(server.client(), stream=True, max_tokens=300, extra_body={"ignore_eos": True})
    chunks = [next(iter(stream))]
    threading.Timer(0.1, lambda: server.process.send_signal(signal.SIGTERM)).start()
    chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert server.process.wait(timeout=30) == 0


def main() -> None:
    with tempfile.TemporaryDirectory() as data:
        flags = ["--max-model-len", "1024", "--drain-grace", "1", "--data-dir", data]
        server = TestedServer(sys.argv[1], sys.argv[2], NAME, *flags)
        try:
            sys.exit(1 if run_tests(TESTS, server) else 0)
        finally:
            server.process.kill()


if __name__ == "__main__":
    main()
