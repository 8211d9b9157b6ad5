"""Checks the OpenAPI document of Octant servers, started here over simulated GPUs: it is valid, and for
requests that schemathesis makes of it, valid and not, no answer is a fault of the server and every answer has
the documented form. One server keeps files and batches, one has an API key, and one has a reward head.

    openapi.py OCTANT_BINARY MODEL_DIRECTORY

The requests come from a fixed seed.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

from harness import KEY, Process
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
CONFIG = pathlib.Path(__file__).with_name("schemathesis.toml")
HOOKS = pathlib.Path(__file__).with_name("schemathesis_hooks.py")
REWARD = pathlib.Path(__file__).parents[2] / "models/nemotron-4-340b-reward"


def main() -> int:
    binary, model = sys.argv[1:]
    failed = 0
    one = ["-tp", "1", "--data-dir"]
    with tempfile.TemporaryDirectory() as data, Server(binary, model, *one, data) as server:
        validate(server.document)
        print(f"the document is valid: {len(server.document['paths'])} paths", flush=True)
        failed += server.test("--max-examples", "10", **server.make_batch())
    with tempfile.TemporaryDirectory() as data:
        with Server(binary, model, *one, data, "--api-key", KEY) as server:
            # Without the key, and with it.
            brief = ["--max-examples", "1", "--phases", "examples,fuzzing"]
            failed += server.test(*brief)
            failed += server.test(*brief, "--header", f"Authorization: Bearer {KEY}")
    # The routes that a model with a reward head answers and another one refuses.
    scores = ["--include-path-regex", "^/(v1/reward|pooling|classify|get_reward)$", "--max-examples", "5"]
    with Server(binary, model, "-tp", "8", "--simulate-config", str(REWARD)) as server:
        failed += server.test(*scores)
    return 1 if failed else 0


class Server(Process):
    """A server without weights."""

    def __init__(self, binary: str, model: str, *settings: str) -> None:
        flags = ["--device", "simulate", "--simulate-pace", "0", "--max-model-len", "256"]
        flags += ["--drain-grace", "0", *settings]
        super().__init__(binary, model, *flags, log_level="error")
        self.document = self.call("GET", "/openapi.json")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def call(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> dict:
        headers = {"Content-Type": kind} if body else {}
        request = urllib.request.Request(self.root + path, body, headers, method=method)
        return json.load(urllib.request.urlopen(request, timeout=10))

    def make_batch(self) -> dict[str, str]:
        """Uploads a file and runs it as a batch. Returns their ids, which generated requests then name."""
        line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}
        parts = {'"purpose"': "batch", '"file"; filename="a.jsonl"': json.dumps(line)}
        head = "Content-Disposition: form-data; name="
        form = "".join(f"--x\r\n{head}{name}\r\n\r\n{value}\r\n" for name, value in parts.items())
        kind = "multipart/form-data; boundary=x"
        file = self.call("POST", "/v1/files", f"{form}--x--\r\n".encode(), kind)["id"]
        new = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = self.call("POST", "/v1/batches", json.dumps(new).encode())["id"]
        return {"OCTANT_FILE": file, "OCTANT_BATCH": batch}

    def test(self, *selection: str, **environment: str) -> int:
        tester = pathlib.Path(sys.executable).with_name("schemathesis")
        run = [tester, "--config-file", CONFIG, "run", f"{self.root}/openapi.json", "--no-color"]
        run += ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--seed", "1"]
        run += ["--continue-on-failure", "--warnings", "off", *selection]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS), **environment}
        return subprocess.run(run, env=environment, timeout=300).returncode


if __name__ == "__main__":
    sys.exit(main())
