"""openai-agents with its model for chat completions."""

from typing import Literal

import agents
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool
from harness import Endpoint, call
from openai import AsyncOpenAI
from openai_tools import PARIS, Fruit

agents.set_tracing_disabled(True)
ASK = "Which fruit do you like, and how many?"


@function_tool
def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


@function_tool
def place(city: Literal["Paris", "Rome"]) -> str:
    """Names a city."""
    return city


def agent(server: Endpoint, **more) -> Agent:
    client = AsyncOpenAI(base_url=server.url, api_key=server.key, max_retries=0)
    more.setdefault("model_settings", ModelSettings(max_tokens=200, temperature=0))
    model = OpenAIChatCompletionsModel(model=server.model, openai_client=client)
    return Agent(name="helper", instructions="Answer in a few words.", model=model, **more)


def test_text_and_a_class_as_output(demo, _scripted):
    brief = ModelSettings(max_tokens=12)
    assert Runner.run_sync(agent(demo, model_settings=brief), "Name three fruits.").final_output
    result = Runner.run_sync(agent(demo, output_type=Fruit), ASK)
    assert isinstance(result.final_output, Fruit), result


def test_a_forced_tool(demo, _scripted):
    settings = ModelSettings(max_tokens=200, tool_choice="required", parallel_tool_calls=False, temperature=0)
    forced = agent(demo, tools=[place], model_settings=settings, tool_use_behavior="stop_on_first_tool")
    assert Runner.run_sync(forced, "Name a city.").final_output in ("Paris", "Rome")


async def test_a_tool_is_called_and_its_result_goes_back(_demo, scripted):
    script = f"How is the weather? ANSWER:{call('weather', PARIS)}"
    result = await Runner.run(agent(scripted, tools=[weather]), script)
    assert result.final_output == "The tools say: sunny in Paris", result
    streamed = Runner.run_streamed(agent(scripted, tools=[weather]), script)
    kinds = [event.name async for event in streamed.stream_events() if event.type == "run_item_stream_event"]
    assert streamed.final_output == "The tools say: sunny in Paris"
    assert kinds == ["tool_called", "tool_output", "message_output_created"], kinds


async def test_one_agent_hands_over_to_another(_demo, scripted):
    other = agent(scripted)
    first = agent(scripted, handoffs=[other.clone(name="expert")])
    result = await Runner.run(first, f"ANSWER:{call('transfer_to_expert', '{}')}")
    assert result.last_agent.name == "expert" and "The tools say: " in result.final_output, result
