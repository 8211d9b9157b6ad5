"""LlamaIndex, by its class `OpenAILike`."""

from harness import Endpoint, call
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai_tools import PARIS, Fruit


def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


def llm(server: Endpoint, **more) -> OpenAILike:
    where = {"model": server.model, "api_base": server.url, "api_key": server.key, "max_retries": 0}
    form = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 2048}
    return OpenAILike(**where, **form | {"max_tokens": 200, "temperature": 0} | more)


async def test_chats_and_completions_whole_and_streamed(demo, _scripted):
    ask = [ChatMessage("Name three fruits.")]
    brief = llm(demo, max_tokens=12)
    answer = brief.chat(ask).message.content
    assert answer and "".join(chunk.delta for chunk in brief.stream_chat(ask)) == answer
    assert (await brief.achat(ask)).message.content == answer
    plain = llm(demo, max_tokens=12, is_chat_model=False)
    text = plain.complete("One, two,").text
    assert text and "".join(chunk.delta for chunk in plain.stream_complete("One, two,")) == text


def test_structured_output(demo, _scripted):
    ask = PromptTemplate("Which fruit do you like, and how many?")
    assert isinstance(llm(demo).structured_predict(Fruit, ask), Fruit)


def test_a_call_and_its_result(_demo, scripted):
    tool = FunctionTool.from_defaults(weather)
    asked = ChatMessage(f"How is the weather? ANSWER:{call('weather', PARIS)}")
    answer = llm(scripted).chat_with_tools([tool], chat_history=[asked])
    [made] = llm(scripted).get_tool_calls_from_response(answer)
    assert (made.tool_name, made.tool_kwargs) == ("weather", {"city": "Paris"}), answer
    result = ChatMessage("sunny", role=MessageRole.TOOL, additional_kwargs={"tool_call_id": made.tool_id})
    final = llm(scripted).chat_with_tools([tool], chat_history=[asked, answer.message, result])
    assert final.message.content == "The tools say: sunny", final
