"""Tests `/v1/messages` of an Octant server, started here, with the `anthropic` client.

    anthropic_client.py OCTANT_BINARY MODEL_DIRECTORY
"""

import asyncio

import anthropic
from anthropic import Anthropic, AsyncAnthropic
from harness import KEY, NAME, expect, run

TESTS = []
FRUITS = [{"role": "user", "content": "Name three fruits."}]
WEATHER = {
    "name": "weather",
    "description": "Returns the weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def test(function):
    TESTS.append(function)
    return function


def client(server, key=KEY) -> Anthropic:
    return Anthropic(base_url=server.root, api_key=key, max_retries=0, timeout=60)


def options(messages=FRUITS, **more):
    # The client's newest types have no sampling parameters.
    body = {"temperature": 0}
    return {"model": NAME, "max_tokens": 24, "messages": messages, "extra_body": body} | more


def create(server, messages=FRUITS, **more):
    return client(server).messages.create(**options(messages, **more))


@test
def answers_a_question(server):
    question = [{"role": "user", "content": "Who wrote Romeo and Juliet?"}]
    answer = create(server, question, max_tokens=64, stop_sequences=["."], system="Be brief.")
    assert "Shakespeare" in answer.content[0].text, answer
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", ".")
    assert answer.usage.output_tokens > 0 and answer.id.startswith("msg_")
    again = anthropic.types.Message.model_validate_json(answer.model_dump_json())
    assert again.model_dump() == answer.model_dump()


@test
def an_answer_that_is_cut_off_says_so(server):
    answer = create(server, max_tokens=4)
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 4


@test
def a_stream_has_the_same_text_as_a_whole_answer(server):
    whole = create(server)
    with client(server).messages.stream(**options()) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    kinds = [event.type for event in create(server, stream=True)]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]


@test
def the_asynchronous_client_streams(server):
    async def stream():
        api = AsyncAnthropic(base_url=server.root, api_key=KEY, max_retries=0, timeout=60)
        async with api.messages.stream(**options()) as stream:
            return "".join([text async for text in stream.text_stream])

    assert asyncio.run(stream()) == create(server).content[0].text


@test
def a_required_call_has_valid_input_and_its_result_can_be_sent_back(server):
    question = [{"role": "user", "content": "What is the weather in Rome?"}]
    tools = {"tools": [WEATHER], "max_tokens": 100}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    answer = create(server, question, tool_choice=choice, **tools)
    call = answer.content[-1]
    assert answer.stop_reason == "tool_use" and call.input["city"] in ("Rome", "Oslo"), answer
    with client(server).messages.stream(**options(question, tool_choice=choice, **tools)) as stream:
        final = stream.get_final_message()
    assert final.content[-1].input == call.input and final.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    history = [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert create(server, question + history, **tools).content


@test
def an_answer_continues_the_assistant_s_message(server):
    begun = FRUITS + [{"role": "assistant", "content": "Apples, pears and"}]
    answer = create(server, begun)
    assert answer.content and not answer.content[0].text.startswith("Apples")


@test
def tokens_are_counted(server):
    api = client(server)
    count = api.messages.count_tokens(model=NAME, messages=FRUITS, system="Be brief.", tools=[WEATHER])
    usage = create(server, system="Be brief.", tools=[WEATHER]).usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


@test
def errors_have_the_expected_class_and_type(server):
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    pictures = [{"role": "user", "content": [image]}]
    error = expect(anthropic.BadRequestError, "messages[0].content[0].type", lambda: create(server, pictures))
    assert error.type == "invalid_request_error" and error.request_id
    thinking = {"type": "enabled", "budget_tokens": 1024}
    expect(anthropic.BadRequestError, "thinking.type", lambda: create(server, thinking=thinking))
    error = expect(anthropic.NotFoundError, "other", lambda: create(server, model="other"))
    assert error.type == "not_found_error"
    wrong = client(server, "wrong")
    error = expect(anthropic.AuthenticationError, "key", lambda: wrong.messages.create(**options()))
    assert error.type == "authentication_error"


@test
def models_are_listed(server):
    assert [model.id for model in client(server).models.list()] == [NAME]


if __name__ == "__main__":
    run(TESTS)
