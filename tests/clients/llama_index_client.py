"""llama-index: `OpenAILike`."""

from harness import Endpoint, call
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai_tools import PARIS, Fruit


def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


def model(server: Endpoint, **more) -> OpenAILike:
    more.setdefault("max_tokens", 200)
    where = {"api_base": server.url, "api_key": server.key, "context_window": 1024, "max_retries": 0}
    return OpenAILike(
        model=server.model, is_chat_model=True, is_function_calling_model=True, temperature=0, **where, **more
    )


def test_chat_streamed_and_whole(demo, _scripted):
    question = [ChatMessage(role="user", content="Name three fruits.")]
    whole = model(demo, max_tokens=12).chat(question).message.content
    parts = [part.delta or "" for part in model(demo, max_tokens=12).stream_chat(question)]
    assert "".join(parts) == whole and len(parts) > 5
    assert model(demo, max_tokens=4).complete("One, two,").text


def test_structured_output(demo, _scripted):
    question = [ChatMessage(role="user", content="Which fruit, and how many?")]
    assert isinstance(model(demo).as_structured_llm(Fruit).chat(question).raw, Fruit)
    structured = model(demo, should_use_structured_outputs=True).as_structured_llm(Fruit)
    assert isinstance(structured.chat(question).raw, Fruit)


def test_a_tool(_demo, scripted):
    script = f"How is the weather? ANSWER:{call('weather', PARIS)}"
    tool = FunctionTool.from_defaults(fn=weather)
    answer = model(scripted).predict_and_call([tool], script)
    assert str(answer) == "sunny in Paris", answer
