"""pydantic-ai with its model for chat completions."""

from harness import Endpoint, call
from openai_tools import PARIS, Fruit
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

SETTINGS = {"max_tokens": 200, "temperature": 0, "parallel_tool_calls": False}
ASK = "Which fruit do you like, and how many?"


def model(server: Endpoint) -> OpenAIChatModel:
    return OpenAIChatModel(server.model, provider=OpenAIProvider(base_url=server.url, api_key=server.key))


def agent(server: Endpoint, **more) -> Agent:
    return Agent(model(server), model_settings=SETTINGS, retries=0, **more)


def test_output_by_tool_and_by_schema(demo, _scripted):
    for output in (Fruit, ToolOutput(Fruit), NativeOutput(Fruit), NativeOutput(Fruit, strict=True)):
        result = agent(demo, output_type=output).run_sync(ASK)
        assert isinstance(result.output, Fruit), (output, result)
        assert result.usage.output_tokens > 0


def test_output_by_prompt(_demo, scripted):
    script = 'ANSWER:{"name": "cherry", "count": 3}'
    result = agent(scripted, output_type=PromptedOutput(Fruit)).run_sync(script)
    assert result.output == Fruit(name="cherry", count=3)


async def test_a_tool_is_called_and_its_result_goes_back(_demo, scripted):
    weatherman = agent(scripted)

    @weatherman.tool_plain
    def weather(city: str) -> str:
        """Tells the weather of a city."""
        return f"sunny in {city}"

    script = f"How is the weather? ANSWER:{call('weather', PARIS)}"
    result = await weatherman.run(script)
    assert result.output == "The tools say: sunny in Paris", result
    async with weatherman.run_stream(script) as stream:
        assert await stream.get_output() == "The tools say: sunny in Paris"


async def test_text_is_streamed(demo, _scripted):
    async with agent(demo).run_stream("Name three fruits.", model_settings={"max_tokens": 12}) as stream:
        parts = [part async for part in stream.stream_text(delta=True, debounce_by=None)]
    assert len(parts) > 5 and "".join(parts)
