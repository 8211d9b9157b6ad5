#!/usr/bin/env python3
"""Asks a running server the questions of the Berkeley Function Calling Leaderboard with
`tool_choice: "required"`, and counts the answers whose calls are valid.

    pip install --no-deps bfcl-eval==2026.3.23
    pip install jsonschema==4.26.0
    octant serve demo/smollm2-135m-instruct --port 8123
    python scripts/bfcl_questions.py --url http://127.0.0.1:8123 --count 50

The questions (Apache-2.0) come from the installed package, which is not imported: its own dependencies are
not needed. The validator is `jsonschema`. A call is valid if its function is one of the question's and its
arguments follow the function's parameters. Whether it is the expected function is counted too, but depends
on the model. Exits with status 1 if an answer that ended is invalid, or if a request failed.
"""

import argparse
import collections
import concurrent.futures
import importlib.util
import json
import pathlib
import sys
import time
import urllib.error
import urllib.request

import jsonschema

CATEGORIES = {"simple": "simple_python", "multiple": "multiple", "parallel": "parallel"}
# The questions' names of types that JSON schemas spell differently. `any` allows every type.
TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def schema(parameters):
    """The JSON schema that the parameters of a question's function stand for."""
    found = {key: value for key, value in parameters.items() if key not in ("type", "optional")}
    kind = parameters.get("type", "any")
    if kind != "any":
        found["type"] = TYPES.get(kind, kind)
    if "properties" in found:
        found["properties"] = {name: schema(inner) for name, inner in found["properties"].items()}
    if "items" in found:
        found["items"] = schema(found["items"])
    return found


def name_of(function):
    """A function's name without dots, which names of tools cannot have."""
    return function.replace(".", "_")


def questions(category, count):
    """The first questions of a category, each with the names of the functions that are expected."""
    package = importlib.util.find_spec("bfcl_eval")
    if package is None:
        sys.exit("bfcl-eval is not installed: pip install --no-deps bfcl-eval==2026.3.23")
    data = pathlib.Path(package.origin).parent / "data"
    file = f"BFCL_v4_{CATEGORIES[category]}.json"
    lines = (data / file).read_text().splitlines()[:count]
    answers = (data / "possible_answer" / file).read_text().splitlines()
    expected = {}
    for answer in map(json.loads, answers):
        expected[answer["id"]] = sorted(name_of(name) for call in answer["ground_truth"] for name in call)
    return [(question, expected[question["id"]]) for question in map(json.loads, lines)]


def ask(url, question, max_tokens):
    """The parameters of the question's functions, and the server's answer or error."""
    schemas = {name_of(function["name"]): schema(function["parameters"]) for function in question["function"]}
    tools = [
        {
            "type": "function",
            "function": {
                "name": name_of(function["name"]),
                "description": function["description"],
                "parameters": schemas[name_of(function["name"])],
            },
        }
        for function in question["function"]
    ]
    body = {
        "messages": question["question"][0],
        "tools": tools,
        "tool_choice": "required",
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=3600) as response:
            return schemas, json.load(response)
    except urllib.error.HTTPError as error:
        return schemas, {"error": f"{error.code}: {error.read().decode(errors='replace')[:300]}"}
    except (OSError, ValueError) as error:
        return schemas, {"error": repr(error)}


def fault(choice, schemas):
    """Why an answer that ended is invalid, or None."""
    calls = choice["message"].get("tool_calls") or []
    if choice["finish_reason"] != "tool_calls" or not calls:
        return f"finish_reason {choice['finish_reason']} with {len(calls)} calls"
    for call in calls:
        function = call["function"]
        if function["name"] not in schemas:
            return f"unknown function {function['name']}"
        try:
            arguments = json.loads(function["arguments"])
        except ValueError as error:
            return f"arguments are no JSON: {error}: {function['arguments'][:200]}"
        validator = jsonschema.Draft202012Validator(schemas[function["name"]])
        error = jsonschema.exceptions.best_match(validator.iter_errors(arguments))
        if error:
            return f"{error.validator}: {error.message[:200]}"
    return None


def count(asked, answers, counts):
    """Counts the answers of a category. Returns the faults."""
    faults = []
    for (question, expected), (schemas, answer) in zip(asked, answers, strict=True):
        if "error" in answer:
            counts["errors"] += 1
            faults.append(f"{question['id']}: {answer['error']}")
            continue
        choice = answer["choices"][0]
        counts["prompt tokens"] += answer["usage"]["prompt_tokens"]
        counts["answer tokens"] += answer["usage"]["completion_tokens"]
        if choice["finish_reason"] == "length":
            counts["cut"] += 1
            continue
        counts["ended"] += 1
        why = fault(choice, schemas)
        if why:
            faults.append(f"{question['id']}: {why}")
            continue
        counts["valid"] += 1
        called = sorted(call["function"]["name"] for call in choice["message"]["tool_calls"])
        counts["expected functions"] += called == expected
        counts["calls"] += len(called)
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--count", type=int, default=50, help="questions of each category")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at once")
    parser.add_argument("--max-tokens", type=int, default=300)
    args = parser.parse_args()
    all_faults = []
    print("| questions | | ended | valid | cut | errors | calls | expected functions | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for category in CATEGORIES:
        asked, counts, began = questions(category, args.count), collections.Counter(), time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(args.concurrency) as pool:
            answers = list(pool.map(lambda one: ask(args.url, one[0], args.max_tokens), asked))
        faults = count(asked, answers, counts)
        shown = [counts[key] for key in ("ended", "valid", "cut", "errors", "calls", "expected functions")]
        seconds = round(time.monotonic() - began)
        print(f"| {category} | {len(asked)} | {' | '.join(map(str, shown))} | {seconds} |", flush=True)
        all_faults += faults
    print(*all_faults, sep="\n")
    sys.exit(bool(all_faults))


if __name__ == "__main__":
    main()
