"""`llm`, the command-line client."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Endpoint, call
from openai_tools import PARIS


def run(server: Endpoint, *arguments: str) -> str:
    """Runs `llm` with this server as its only model."""
    model = {
        "model_id": "here",
        "model_name": server.model,
        "api_base": server.url,
        "api_key_name": "here",
        "supports_schema": True,
        "supports_tools": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "extra-openai-models.yaml").write_text(json.dumps([model]))
        Path(folder, "keys.json").write_text(json.dumps({"here": server.key}))
        command = [sys.executable, "-m", "llm", "prompt", "-m", "here", "--no-log", *arguments]
        environment = {**os.environ, "LLM_USER_PATH": folder}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_chat_streamed_and_whole(demo, _scripted):
    options = ["-o", "max_tokens", "12", "-o", "temperature", "0"]
    streamed = run(demo, "Name three fruits.", *options)
    assert streamed.strip() and run(demo, "Name three fruits.", "--no-stream", *options) == streamed


def test_a_schema(demo, _scripted):
    schema = {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["count"],
        "additionalProperties": False,
    }
    answer = json.loads(run(demo, "How many?", "--schema", json.dumps(schema), "-o", "max_tokens", "60"))
    assert 0 <= answer["count"] <= 99, answer


def test_a_tool(_demo, scripted):
    code = "def weather(city: str) -> str:\n    return f'sunny in {city}'"
    script = f"How is the weather? ANSWER:{call('weather', PARIS)}"
    for more in ([], ["--no-stream"]):
        assert run(scripted, script, "--functions", code, *more).strip() == "The tools say: sunny in Paris"
    answer = run(scripted, f"ANSWER:{call('llm_version', '{}')}", "-T", "llm_version")
    assert answer.startswith("The tools say: 0."), answer
