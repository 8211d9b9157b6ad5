"""Tests `/v1/responses` of an Octant server, started here, with the `openai` client and with `openai-agents`.

    responses_client.py OCTANT_BINARY MODEL_DIRECTORY
"""

import asyncio
import json
from typing import Literal

import openai
from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled
from agents.models.openai_responses import OpenAIResponsesModel
from harness import KEY, NAME, expect, run
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

TESTS = []
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Returns the weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Person(BaseModel):
    name: str
    age: int


def test(function):
    TESTS.append(function)
    return function


def client(server) -> OpenAI:
    return OpenAI(base_url=f"{server.root}/v1", api_key=KEY, max_retries=0, timeout=60)


def create(server, text="Name three fruits.", **more):
    more.setdefault("temperature", 0)
    more.setdefault("max_output_tokens", 24)
    return client(server).responses.create(model=NAME, input=text, **more)


@test
def answers_a_question(server):
    answer = create(server, "Who wrote Romeo and Juliet?", max_output_tokens=64, extra_body={"stop": ["."]})
    assert "Shakespeare" in answer.output_text, answer
    assert answer.status == "completed" and answer.error is None and answer.incomplete_details is None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


@test
def a_response_is_valid_for_the_client_s_types(server):
    more = {"tools": [WEATHER], "tool_choice": "none", "metadata": {"a": "b"}}
    answer = create(server, instructions="Be brief.", **more)
    again = openai.types.responses.Response.model_validate_json(answer.model_dump_json())
    assert again.model_dump() == answer.model_dump()
    assert answer.instructions == "Be brief." and answer.metadata == {"a": "b"}
    assert answer.tool_choice == "none"
    assert answer.tools[0].name == "weather" and answer.text.format.type == "text"


@test
def an_answer_that_is_cut_off_is_incomplete(server):
    answer = create(server, max_output_tokens=4)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete" and answer.usage.output_tokens == 4


@test
def a_stream_has_the_same_text_as_a_whole_answer(server):
    whole = create(server)
    events = list(create(server, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].response.output_text == whole.output_text


@test
def the_stream_helper_collects_the_response(server):
    options = {"model": NAME, "input": "Name three fruits.", "temperature": 0}
    with client(server).responses.stream(**options, extra_body={"stop": ["\n"]}) as stream:
        types = [event.type for event in stream]
        final = stream.get_final_response()
    assert types[-1] == "response.completed" and "response.output_text.done" in types
    assert final.output_text


@test
def a_parsed_answer_is_an_object(server):
    text = "Anna is 31 years old. Give name and age as JSON."
    options = {"model": NAME, "input": text, "temperature": 0, "max_output_tokens": 200}
    answer = client(server).responses.parse(**options, text_format=Person)
    assert isinstance(answer.output_parsed, Person), answer.output_text
    with client(server).responses.stream(**options, text_format=Person) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == answer.output_parsed


@test
def a_required_call_comes_with_valid_arguments_and_its_result_can_be_sent_back(server):
    question = [{"role": "user", "content": "What is the weather in Rome?"}]
    options = {"tools": [WEATHER], "max_output_tokens": 100, "parallel_tool_calls": False}
    answer = create(server, question, tool_choice="required", **options)
    call = answer.output[-1]
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Rome", "Oslo"), answer
    events = list(create(server, question, tool_choice="required", stream=True, **options))
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    final = create(server, question + answer.output + [result], **options)
    assert final.status in ("completed", "incomplete") and final.output


@test
def log_probabilities_carry_the_bytes_of_the_text(server):
    answer = create(server, include=["message.output_text.logprobs"], top_logprobs=2)
    tokens = answer.output[0].content[0].logprobs
    assert bytes(b for token in tokens for b in token.bytes).decode() == answer.output_text
    assert all(len(token.top_logprobs) == 2 for token in tokens)


@test
def what_is_not_supported_is_refused_by_name(server):
    expect(openai.BadRequestError, "background", lambda: create(server, background=True))
    earlier = {"previous_response_id": "resp_1"}
    expect(openai.BadRequestError, "previous_response_id", lambda: create(server, **earlier))
    search = [{"type": "web_search"}]
    error = expect(openai.BadRequestError, "web_search", lambda: create(server, tools=search))
    assert error.param == "tools[0].type"


@function_tool
def weather(city: Literal["Rome", "Oslo"]) -> str:
    """Returns the weather of a city."""
    return f"It is sunny in {city}."


def agent(server, **more):
    model = OpenAIResponsesModel(
        model=NAME,
        openai_client=AsyncOpenAI(base_url=f"{server.root}/v1", api_key=KEY, max_retries=0, timeout=60),
    )
    settings = ModelSettings(temperature=0, max_tokens=200, **more.pop("settings", {}))
    return Agent(name="helper", instructions="Be brief.", model=model, model_settings=settings, **more)


@test
def an_agent_answers(server):
    result = asyncio.run(Runner.run(agent(server), "Name three fruits."))
    assert result.final_output


@test
def an_agent_calls_a_tool_and_goes_on(server):
    # The first turn must call the tool; then the agent sets the choice back.
    settings = {"tool_choice": "required", "parallel_tool_calls": False}
    helper = agent(server, tools=[weather], settings=settings)
    result = asyncio.run(Runner.run(helper, "What is the weather in Rome?", max_turns=8))
    kinds = [item.type for item in result.new_items]
    assert "tool_call_item" in kinds and "tool_call_output_item" in kinds, kinds


@test
def an_agent_s_stream_has_deltas_and_its_output_follows_a_type(server):
    async def stream():
        # An answer that is cut off is an error for an agent.
        helper = agent(server, settings={"extra_body": {"stop": ["\n", "."]}})
        result = Runner.run_streamed(helper, "Name three fruits.")
        deltas = [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]
        return "".join(deltas), result.final_output

    text, final = asyncio.run(stream())
    assert text == final
    typed = agent(server, output_type=Person)
    result = asyncio.run(Runner.run(typed, "Anna is 31 years old."))
    assert isinstance(result.final_output, Person)


if __name__ == "__main__":
    set_tracing_disabled(True)
    run(TESTS)
