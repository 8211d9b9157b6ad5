"""The official `openai` client for Python: structured output and tools."""

import json
from typing import Literal

import openai
from harness import Endpoint, call
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

ASK = [{"role": "user", "content": "Which fruit do you like, and how many?"}]
PARIS = '{"city": "Paris"}'
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


class Fruit(BaseModel, extra="forbid"):
    name: Literal["apple", "banana", "cherry"]
    count: int = Field(ge=0, le=99)


class Weather(BaseModel):
    """Tells the weather of a city."""

    city: Literal["Paris", "Rome"]


def tool(name: str = "weather", strict: bool = False) -> dict:
    about = "Tells the weather of a city."
    function = {"name": name, "description": about, "parameters": SCHEMA, "strict": strict}
    return {"type": "function", "function": function}


def client(server: Endpoint, kind=OpenAI):
    return kind(base_url=server.url, api_key=server.key, max_retries=0, timeout=60)


def ask(script: str) -> list:
    return [{"role": "user", "content": f"How is the weather? ANSWER:{script}"}]


def arguments_of(choice) -> dict:
    assert choice.finish_reason in ("tool_calls", "stop"), choice
    assert len(choice.message.tool_calls) == 1 and choice.message.content is None, choice
    assert choice.message.tool_calls[0].id and choice.message.tool_calls[0].type == "function"
    return json.loads(choice.message.tool_calls[0].function.arguments)


def test_parse_returns_the_class(demo, _scripted):
    answer = client(demo).chat.completions.parse(
        model=demo.model, messages=ASK, response_format=Fruit, max_tokens=60
    )
    assert isinstance(answer.choices[0].message.parsed, Fruit), answer


async def test_parse_returns_the_class_to_the_async_client(demo, _scripted):
    async with client(demo, AsyncOpenAI) as connection:
        answer = await connection.chat.completions.parse(
            model=demo.model, messages=ASK, response_format=Fruit, max_tokens=60
        )
    assert isinstance(answer.choices[0].message.parsed, Fruit), answer


def test_the_stream_helper_parses_the_class(demo, _scripted):
    request = {"model": demo.model, "messages": ASK, "response_format": Fruit, "max_tokens": 60}
    with client(demo).chat.completions.stream(**request) as stream:
        events = [event.type for event in stream]
        answer = stream.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Fruit), answer
    assert events.count("content.done") == 1 and events.count("content.delta") > 3, events


def test_json_object_and_json_schema(demo, _scripted):
    def text(form: dict) -> str:
        answer = client(demo).chat.completions.create(
            model=demo.model, messages=ASK, response_format=form, max_tokens=200, temperature=0
        )
        assert answer.choices[0].finish_reason in ("stop", "length")
        return answer.choices[0].message.content

    assert text({"type": "json_object"}).lstrip().startswith("{")
    form = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}
    assert json.loads(text(form))["city"] in ("Paris", "Rome")


def test_a_schema_that_cannot_be_enforced_names_its_keyword(demo, _scripted):
    schema = {"type": "array", "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    try:
        client(demo).chat.completions.create(model=demo.model, messages=ASK, response_format=form)
    except openai.BadRequestError as error:
        assert error.param == "response_format.json_schema.schema" and "uniqueItems" in error.message, error
        return
    raise AssertionError("the schema was accepted")


def test_every_tool_choice(demo, scripted):
    def choose(server: Endpoint, messages: list, choice, **more):
        answer = client(server).chat.completions.create(
            model=server.model,
            messages=messages,
            tools=[tool(), tool("other")],
            tool_choice=choice,
            max_completion_tokens=200,
            temperature=0,
            **more,
        )
        return answer.choices[0]

    named = {"type": "function", "function": {"name": "weather"}}
    only = [{"type": "function", "function": {"name": "other"}}]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": only}}
    for choice in ("required", named, allowed):
        chosen = choose(demo, ASK, choice, parallel_tool_calls=False)
        assert arguments_of(chosen)["city"] in ("Paris", "Rome")
        names = {"weather"} if choice == named else {"other"} if choice == allowed else {"weather", "other"}
        assert chosen.message.tool_calls[0].function.name in names, chosen
    script = ask(call("weather", PARIS))
    assert arguments_of(choose(scripted, script, "auto")) == {"city": "Paris"}
    chosen = choose(scripted, script, "none")
    assert chosen.message.tool_calls is None and "<tool_call>" in chosen.message.content, chosen


def test_two_calls_then_their_results(_demo, scripted):
    connection = client(scripted)
    request = {"model": scripted.model, "tools": [tool()]}
    messages = ask(call("weather", PARIS) + call("weather", '{"city": "Rome"}'))
    message = connection.chat.completions.create(messages=messages, **request).choices[0].message
    assert [json.loads(c.function.arguments)["city"] for c in message.tool_calls] == ["Paris", "Rome"]
    assert message.tool_calls[0].id != message.tool_calls[1].id
    messages.append(message)
    for wanted, result in zip(message.tool_calls, ("sunny", "rainy")):
        messages.append({"role": "tool", "tool_call_id": wanted.id, "content": result})
    answer = connection.chat.completions.create(messages=messages, **request).choices[0]
    assert (answer.message.content, answer.finish_reason) == ("The tools say: sunny rainy", "stop")


def test_calls_are_streamed(_demo, scripted):
    script = ask("I will look. " + call("weather", PARIS))
    request = {"model": scripted.model, "messages": script, "tools": [tool()]}
    chunks = list(client(scripted).chat.completions.create(stream=True, **request))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas).strip() == "I will look."
    parts = [part for delta in deltas for part in delta.tool_calls or []]
    assert parts[0].id and parts[0].function.name == "weather" and len(parts) > 5, parts
    assert "".join(part.function.arguments or "" for part in parts) == PARIS
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_stream_helper_parses_the_arguments(_demo, scripted):
    tools = [openai.pydantic_function_tool(Weather, name="weather")]
    request = {"model": scripted.model, "messages": ask(call("weather", PARIS)), "tools": tools}
    with client(scripted).chat.completions.stream(**request) as stream:
        events = list(stream)
        answer = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [Weather(city="Paris")], done
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(city="Paris")


async def test_the_async_client_streams_calls(demo, _scripted):
    async with client(demo, AsyncOpenAI) as connection:
        stream = await connection.chat.completions.create(
            model=demo.model,
            messages=ASK,
            tools=[tool(strict=True)],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=200,
            temperature=0,
            stream=True,
        )
        parts = [part async for chunk in stream for part in chunk.choices[0].delta.tool_calls or []]
    assert json.loads("".join(part.function.arguments or "" for part in parts))["city"] in ("Paris", "Rome")
