"""LiteLLM, by its providers `openai/` and `hosted_vllm/`."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # Else it downloads a table of prices.

import litellm
from harness import Endpoint, call
from openai_tools import ASK, PARIS, Fruit, ask, tool

litellm.suppress_debug_info = True
PROVIDERS = ("openai", "hosted_vllm")


def to(server: Endpoint, provider: str) -> dict:
    where = {"api_base": server.url, "api_key": server.key, "num_retries": 0}
    return {"model": f"{provider}/{server.model}", **where}


def test_completions_whole_and_streamed(demo, _scripted):
    for provider in PROVIDERS:
        answer = litellm.completion(messages=ASK, max_tokens=12, temperature=0, **to(demo, provider))
        chunks = list(
            litellm.completion(messages=ASK, max_tokens=12, temperature=0, stream=True, **to(demo, provider))
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == answer.choices[0].message.content and text, (provider, text)
    answer = litellm.text_completion(prompt="One, two,", max_tokens=4, **to(demo, "text-completion-openai"))
    assert answer.choices[0].text


async def test_structured_output(demo, _scripted):
    for provider in PROVIDERS:
        answer = litellm.completion(messages=ASK, max_tokens=60, response_format=Fruit, **to(demo, provider))
        Fruit.model_validate_json(answer.choices[0].message.content)
        form = {"type": "json_object"}
        answer = litellm.completion(messages=ASK, max_tokens=20, response_format=form, **to(demo, provider))
        assert answer.choices[0].message.content.lstrip().startswith("{"), answer
    request = {"messages": ASK, "max_tokens": 60, "temperature": 0, "response_format": Fruit}
    answer = await litellm.acompletion(**request, **to(demo, "hosted_vllm"))
    Fruit.model_validate_json(answer.choices[0].message.content)


def test_tools(demo, scripted):
    for provider in PROVIDERS:
        forced = litellm.completion(
            messages=ASK,
            tools=[tool()],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=200,
            temperature=0,
            **to(demo, provider),
        )
        names = [c.function.name for c in forced.choices[0].message.tool_calls]
        assert set(names) == {"weather"}, forced
        messages = ask(call("weather", PARIS))
        answer = litellm.completion(messages=messages, tools=[tool()], **to(scripted, provider))
        message = answer.choices[0].message
        assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Paris"}, answer
        assert answer.choices[0].finish_reason == "tool_calls"
        chunks = list(
            litellm.completion(messages=messages, tools=[tool()], stream=True, **to(scripted, provider))
        )
        rebuilt = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
        assert [c.function.arguments for c in rebuilt] == [PARIS], rebuilt
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
        messages += [message.model_dump(), result]
        answer = litellm.completion(messages=messages, tools=[tool()], **to(scripted, provider))
        assert answer.choices[0].message.content == "The tools say: sunny"


def test_errors_keep_their_class(demo, _scripted):
    try:
        litellm.completion(messages=[{"role": "user", "content": "word " * 9000}], **to(demo, "openai"))
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("the prompt was accepted")


def test_responses_whole_and_streamed(demo, scripted):
    for provider in PROVIDERS:
        request = {"input": "Name three fruits.", "max_output_tokens": 16, "temperature": 0}
        answer = litellm.responses(**request, **to(demo, provider))
        text = answer.output[0].content[0].text
        assert text and answer.usage.output_tokens == 16, answer
        events = list(litellm.responses(**request, stream=True, **to(demo, provider)))
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == text, events
        flat = {"type": "function", **tool()["function"]}
        answer = litellm.responses(input=ask(call("weather", PARIS)), tools=[flat], **to(scripted, provider))
        [made] = [item for item in answer.output if item.type == "function_call"]
        assert (made.name, json.loads(made.arguments)) == ("weather", {"city": "Paris"}), answer


async def test_requests_in_the_form_of_anthropic(demo, scripted):
    offered = {"name": "weather", "input_schema": tool()["function"]["parameters"]}
    # The first two translate the request for OpenAI's routes; the last one sends it as it is.
    for provider in (*PROVIDERS, "anthropic"):
        ends = [to(server, provider) for server in (demo, scripted)]
        for end, server in zip(ends, (demo, scripted)):
            end.pop("num_retries")
            end["api_base"] = server.root if provider == "anthropic" else server.url
        answer = await litellm.anthropic.messages.acreate(messages=ASK, max_tokens=16, **ends[0])
        assert answer["content"][0]["text"] and 0 < answer["usage"]["output_tokens"] <= 16, answer
        # Streams of the others need what LiteLLM's proxy installs.
        if provider == "hosted_vllm":
            stream = await litellm.anthropic.messages.acreate(
                messages=ASK, max_tokens=16, stream=True, **ends[0]
            )
            pieces = b"".join([piece async for piece in stream])
            assert b"content_block_delta" in pieces and b"message_stop" in pieces, pieces
        request = {"messages": ask(call("weather", PARIS)), "max_tokens": 200, "tools": [offered]}
        answer = await litellm.anthropic.messages.acreate(**request, **ends[1])
        made = answer["content"][-1]
        assert (made["type"], made["input"]) == ("tool_use", {"city": "Paris"}), answer
        assert answer["stop_reason"] == "tool_use", answer
