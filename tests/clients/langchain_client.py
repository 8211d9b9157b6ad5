"""LangChain: `ChatOpenAI` of langchain-openai."""

from typing import Literal

from harness import Endpoint, call
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai_tools import PARIS, Fruit

ASK = "Which fruit do you like, and how many? Answer in JSON."


@tool
def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


@tool
def place(city: Literal["Paris", "Rome"]) -> str:
    """Names a city."""
    return city


def model(server: Endpoint, **more) -> ChatOpenAI:
    more.setdefault("max_tokens", 200)
    return ChatOpenAI(model=server.model, base_url=server.url, api_key=server.key, max_retries=0, **more)


def by_responses(server: Endpoint, **more) -> ChatOpenAI:
    return model(server, use_responses_api=True, **more)


def test_structured_output_by_schema_and_by_function(demo, _scripted):
    for method in ("json_schema", "function_calling"):
        for strict in (None, True):
            structured = model(demo).with_structured_output(Fruit, method=method, strict=strict)
            assert isinstance(structured.invoke(ASK), Fruit), (method, strict)


def test_structured_output_by_json_mode(_demo, scripted):
    structured = model(scripted).with_structured_output(Fruit, method="json_mode")
    script = 'In JSON. ANSWER:{"name": "cherry", "count": 3}'
    assert structured.invoke(script) == Fruit(name="cherry", count=3)


def test_structured_output_is_streamed(demo, _scripted):
    parts = list(model(demo).with_structured_output(Fruit, method="json_schema").stream(ASK))
    assert isinstance(parts[-1], Fruit), parts


def test_every_choice_of_bound_tools(demo, scripted):
    for choice in ("required", "any", "place", True):
        bound = model(demo, temperature=0).bind_tools(
            [place], tool_choice=choice, strict=True, parallel_tool_calls=False
        )
        answer = bound.invoke(ASK)
        assert [c["name"] for c in answer.tool_calls] == ["place"], (choice, answer)
    script = f"ANSWER:{call('weather', PARIS)}"
    answer = model(scripted).bind_tools([weather], tool_choice="none").invoke(script)
    assert not answer.tool_calls and "<tool_call>" in answer.content


def test_a_call_and_its_result(_demo, scripted):
    bound = model(scripted).bind_tools([weather])
    messages = [HumanMessage(f"How is the weather? ANSWER:{call('weather', PARIS)}")]
    answer = bound.invoke(messages)
    assert [c["args"] for c in answer.tool_calls] == [{"city": "Paris"}], answer
    result = weather.invoke(answer.tool_calls[0])
    assert isinstance(result, ToolMessage)
    final = bound.invoke([*messages, answer, result])
    assert final.content == "The tools say: sunny in Paris", final


def test_calls_and_text_are_streamed(demo, scripted):
    bound = model(scripted).bind_tools([weather])
    whole = None
    for chunk in bound.stream(f"ANSWER:So: {call('weather', PARIS)}"):
        whole = chunk if whole is None else whole + chunk
    assert whole.content.strip() == "So:" and whole.tool_calls[0]["args"] == {"city": "Paris"}, whole
    chunks = list(model(demo, max_tokens=12, stream_usage=True).stream("Name three fruits."))
    assert sum(len(chunk.content) > 0 for chunk in chunks) > 5
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) == 12


async def test_batches_and_async_calls(demo, _scripted):
    answers = await model(demo, max_tokens=8).abatch(["One, two,", "Red, green,"])
    assert len(answers) == 2 and all(answer.content for answer in answers)


def test_the_responses_api_whole_and_streamed(demo, _scripted):
    brief = by_responses(demo, max_tokens=12, temperature=0)
    answer = brief.invoke("Name three fruits.")
    assert answer.text and answer.usage_metadata["output_tokens"] == 12, answer
    assert "".join(chunk.text for chunk in brief.stream("Name three fruits.")) == answer.text
    structured = by_responses(demo).with_structured_output(Fruit, method="json_schema")
    assert isinstance(structured.invoke(ASK), Fruit)
    assert isinstance(list(structured.stream(ASK))[-1], Fruit)


def test_the_responses_api_with_tools(demo, scripted):
    bound = by_responses(scripted).bind_tools([weather])
    messages = [HumanMessage(f"How is the weather? ANSWER:{call('weather', PARIS)}")]
    answer = bound.invoke(messages)
    assert [c["args"] for c in answer.tool_calls] == [{"city": "Paris"}], answer
    final = bound.invoke([*messages, answer, weather.invoke(answer.tool_calls[0])])
    assert final.text == "The tools say: sunny in Paris", final
    forced = by_responses(demo, temperature=0).bind_tools([place], tool_choice="place", strict=True)
    assert {c["name"] for c in forced.invoke(ASK).tool_calls} == {"place"}
