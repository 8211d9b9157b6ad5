"""Shared by the tests of clients: the servers that they use, and what runs them.

The demo model answers within the limits of a schema or of a forced tool call. What it says there is its own
business, so tests look at the form. The scripted server is the same HTTP front end and engine over a model
that repeats a script: it answers with what follows `ANSWER:` in the last message of the user, and with
"The tools say: …" to results of tools.
"""

import asyncio
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from dataclasses import dataclass

NAME = "demo"
KEY = "a-key"


@dataclass(frozen=True)
class Endpoint:
    """Where a client finds a server."""

    root: str
    model: str
    key: str = KEY

    @property
    def url(self) -> str:
        return f"{self.root}/v1"


class Process:
    """A process of `octant serve` on a free port, which is ready."""

    def __init__(self, binary: str, model: str, *flags: str, log_level: str = "warn") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [binary, "serve", "--model", model, "--port", str(self.port)]
        self.process = subprocess.Popen([*command, "--log-level", log_level, *flags])
        self.root = f"http://127.0.0.1:{self.port}"
        deadline = time.monotonic() + 60
        while not self.ready():
            assert self.process.poll() is None, "the server ended while starting"
            assert time.monotonic() < deadline, "the server is not ready after a minute"
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.root}/health/ready", timeout=2).status == 200
        except OSError:
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0, "the server did not end cleanly"


class Server(Process):
    """A server with the demo model and a key."""

    def __init__(self, binary: str, model: str, name: str = NAME, *flags: str) -> None:
        flags = ["--served-model-name", name, "--api-key", KEY, "--max-num-seqs", "8", *flags]
        super().__init__(binary, model, *flags)
        self.endpoint = Endpoint(self.root, name)


class RustServer:
    """A server that an ignored test of the test binary runs until its standard input ends."""

    def __init__(self, binary: str, test: str) -> None:
        command = [binary, "--ignored", "--exact", test, "--nocapture"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if found := re.match(r"listening on (\S+)", line):
                self.root = f"http://{found.group(1)}"
                return
        raise AssertionError(f"{test} ended while starting")


class ScriptedServer(RustServer):
    """A server of `tests/it/http/scripted.rs`."""

    def __init__(self, binary: str, name: str = "serve_scripted_answers") -> None:
        super().__init__(binary, f"http::scripted::{name}")
        self.endpoint = Endpoint(self.root, "parrot")


def call(name: str, arguments: str) -> str:
    """A tool call as the scripted model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def run_tests(tests: list, *arguments) -> int:
    """Runs each test, prints its outcome and time, and returns the number of failures."""
    failed = 0
    for function in tests:
        began = time.monotonic()
        try:
            result = function(*arguments)
            if inspect.isawaitable(result):
                asyncio.run(result)
            print(f"ok      {function.__name__} ({time.monotonic() - began:.1f} s)", flush=True)
        except Exception as error:  # noqa: BLE001
            failed += 1
            print(f"FAILED  {function.__name__}: {type(error).__name__}: {error}", flush=True)
            if os.environ.get("OCTANT_TRACEBACKS"):
                traceback.print_exc()
    print(f"{len(tests) - failed} passed, {failed} failed", flush=True)
    return failed


def run(tests: list) -> None:
    """Runs the tests against a server of their own. Exits with status 1 if any fails."""
    server = Server(sys.argv[1], sys.argv[2], NAME, "--max-model-len", "2048", "--drain-grace", "0")
    try:
        sys.exit(1 if run_tests(tests, server) else 0)
    finally:
        server.process.kill()


def expect(kind, part, call):
    """Checks that a call raises an error of this class whose text has this part. Returns the error."""
    try:
        call()
    except kind as error:
        assert part in str(error), error
        return error
    raise AssertionError(f"expected {kind.__name__}")
