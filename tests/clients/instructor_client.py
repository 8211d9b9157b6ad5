"""instructor, in each of its modes for OpenAI's API."""

import instructor
from harness import Endpoint
from openai import AsyncOpenAI, OpenAI
from openai_tools import ASK, Fruit

SCRIPT = [{"role": "user", "content": 'ANSWER:{"name": "cherry", "count": 3}'}]


def client(server: Endpoint, mode: instructor.Mode, kind=OpenAI):
    return instructor.from_openai(kind(base_url=server.url, api_key=server.key), mode=mode)


def request(server: Endpoint, messages: list = ASK) -> dict:
    return {"model": server.model, "messages": messages, "max_tokens": 200, "max_retries": 0}


def test_tools_and_json_schema(demo, _scripted):
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
        fruit = client(demo, mode).create(response_model=Fruit, **request(demo))
        assert isinstance(fruit, Fruit), (mode, fruit)


def test_json_and_markdown(_demo, scripted):
    # In these modes the schema is a part of the prompt, and the model has to follow it.
    for mode, messages in [
        (instructor.Mode.JSON, SCRIPT),
        (instructor.Mode.MD_JSON, [{"role": "user", "content": 'ANSWER:```json\n{"name": "cherry", "count": 3}\n```'}]),
    ]:
        fruit = client(scripted, mode).create(response_model=Fruit, **request(scripted, messages))
        assert fruit.model_dump() == {"name": "cherry", "count": 3}, (mode, fruit)


async def test_partial_objects(demo, _scripted):
    partial = list(client(demo, instructor.Mode.TOOLS).create_partial(response_model=Fruit, **request(demo)))
    assert len(partial) > 2 and Fruit.model_validate(partial[-1].model_dump())
    connection = client(demo, instructor.Mode.JSON_SCHEMA, AsyncOpenAI)
    assert isinstance(await connection.create(response_model=Fruit, **request(demo)), Fruit)
