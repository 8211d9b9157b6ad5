"""Checks the OpenAPI document of an Octant server, started here over simulated GPUs: it is valid, and for
bodies that schemathesis makes of it, valid and not, no answer is a fault of the server and every answer has
the documented form. A second server, with a reward head, gets those of the routes for scores.

    openapi.py OCTANT_BINARY MODEL_DIRECTORY

The bodies come from a fixed seed.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from openapi_spec_validator import validate

# Most bodies that the document allows are served. Ids beyond the model's vocabulary and names of other models
# are not, which the document cannot say.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
]
HOOKS = pathlib.Path(__file__).with_name("schemathesis_hooks.py")
REWARD = pathlib.Path(__file__).parents[2] / "models/nemotron-4-340b-reward"


def main() -> int:
    binary, model = sys.argv[1:]
    status = check(binary, model, ["-tp", "1"], ["--include-method", "POST", "--max-examples", "10"])
    # The routes that a model with a reward head answers and another one refuses.
    scores = ["--include-path-regex", "^/(v1/reward|pooling|classify|get_reward)$", "--max-examples", "5"]
    reward = ["-tp", "8", "--simulate-config", str(REWARD)]
    return status or check(binary, model, reward, scores)


def check(binary: str, model: str, settings: list[str], selection: list[str]) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [binary, "serve", "--model", model, "--device", "simulate", "--simulate-pace", "0"]
    command += ["--max-model-len", "256", "--port", str(port), "--drain-grace", "0", "--log-level", "error"]
    server = subprocess.Popen(command + settings)
    try:
        url = f"http://127.0.0.1:{port}/openapi.json"
        wait(url, server)
        document = json.load(urllib.request.urlopen(url, timeout=10))
        validate(document)
        print(f"the document is valid: {len(document['paths'])} paths", flush=True)
        tester = pathlib.Path(sys.executable).with_name("schemathesis")
        run = [tester, "run", url, "--checks", ",".join(CHECKS), "--no-color"]
        run += ["--phases", "examples,coverage,fuzzing", "--seed", "1", *selection]
        run += ["--continue-on-failure", "--warnings", "off"]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}
        return subprocess.run(run, env=environment, timeout=300).returncode
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)


def wait(url: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, "the server ended while starting"
        assert time.monotonic() < deadline, "the server is not ready after a minute"
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
