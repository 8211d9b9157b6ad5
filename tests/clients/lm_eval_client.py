"""lm-eval with its remote tokenizer, which asks the server for token ids."""

from harness import Endpoint
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, tuple(each), index) for index, each in enumerate(arguments)]


def completions(server: Endpoint, **more) -> LocalCompletionsAPI:
    return LocalCompletionsAPI(
        base_url=f"{server.url}/completions",
        model=server.model,
        tokenizer_backend="remote",
        auth_token=server.key,
        header={"Authorization": f"Bearer {server.key}"},
        max_length=1024,
        num_concurrent=1,
        max_retries=1,
        **more,
    )


def test_log_likelihoods_by_the_remote_tokenizer(demo, _scripted):
    lm = completions(demo, batch_size=2)
    pairs = [("The capital of France is", " Paris"), ("The capital of France is", " banana")]
    (paris, _), (banana, _) = lm.loglikelihood(requests("loglikelihood", *pairs))
    assert paris > banana, (paris, banana)
    (rolling,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("The sky is blue.",)))
    assert rolling < 0


def test_generation_with_the_chat_template(demo, _scripted):
    lm = completions(demo)
    until = {"until": ["."], "max_gen_toks": 24, "temperature": 0}
    question = [{"role": "user", "content": "Who wrote Romeo and Juliet?"}]
    prompt = lm.tokenizer.apply_chat_template(question)
    assert "<|im_start|>user" in prompt, prompt
    (answer,) = lm.generate_until(requests("generate_until", (prompt, until)))
    assert "Shakespeare" in answer and "." not in answer, answer


def test_chat_completions(demo, _scripted):
    lm = LocalChatCompletion(
        base_url=f"{demo.url}/chat/completions",
        model=demo.model,
        header={"Authorization": f"Bearer {demo.key}"},
        max_retries=1,
    )
    until = {"until": ["."], "max_gen_toks": 24, "temperature": 0}
    prompt = lm.apply_chat_template([{"role": "user", "content": "Who wrote Romeo and Juliet?"}])
    (answer,) = lm.generate_until(requests("generate_until", (prompt, until)))
    assert "Shakespeare" in answer, answer
