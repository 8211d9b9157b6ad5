"""Runs the tests of clients: those of a module in Python, or of every file in `node/`.

    run.py OCTANT_BINARY TEST_BINARY MODEL_DIRECTORY [MODULE…]
    run.py --modules        lists the modules

A module is a file beside this one whose functions `test_…` take the server with the demo model and the
scripted one. The module `node` stands for `node/*.test.mjs`. `requirements.txt` and `node/package-lock.json`
have the clients' versions. OCTANT_TRACEBACKS=1 prints where a test failed.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from harness import Endpoint, ScriptedServer, Server, run_tests

HERE = Path(__file__).resolve().parent
MODULES = [
    "openai_tools",
    "langchain_client",
    "litellm_client",
    "llama_index_client",
    "instructor_client",
    "pydantic_ai_client",
    "openai_agents_client",
    "llm_client",
    "lm_eval_client",
    "nemotron_client",
    "node",
]


def run_python(name: str, demo: Endpoint, scripted: Endpoint) -> bool:
    module = importlib.import_module(name)
    tests = [value for key, value in vars(module).items() if key.startswith("test_")]
    return run_tests(tests, demo, scripted) == 0


def run_node(demo: Endpoint, scripted: Endpoint) -> bool:
    servers = {"demo": demo, "scripted": scripted}
    servers = {name: {**asdict(server), "url": server.url} for name, server in servers.items()}
    files = sorted(str(path) for path in (HERE / "node").glob("*.test.mjs"))
    environment = {**os.environ, "OCTANT_SERVERS": json.dumps(servers)}
    command = ["node", "--test", "--test-reporter=spec", *files]
    return subprocess.run(command, env=environment, cwd=HERE / "node").returncode == 0


def main() -> None:
    if sys.argv[1:] == ["--modules"]:
        sys.exit(print(*MODULES, sep="\n"))
    binary, test_binary, model, *modules = sys.argv[1:]
    failed = []
    # Python removes the directory at the end.
    data = tempfile.TemporaryDirectory()
    server = Server(
        binary, model, "demo", "--max-model-len", "2048", "--drain-grace", "0", "--data-dir", data.name
    )
    scripted = ScriptedServer(test_binary)
    try:
        for name in modules or MODULES:
            print(f"-- {name}", flush=True)
            began = time.monotonic()
            servers = (server.endpoint, scripted.endpoint)
            if not (run_node(*servers) if name == "node" else run_python(name, *servers)):
                failed.append(name)
            print(f"-- {name}: {time.monotonic() - began:.1f} s", flush=True)
    finally:
        server.process.kill()
        scripted.process.kill()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
