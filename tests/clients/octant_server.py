"""An Octant server that a test of a client starts. Arguments after the model are flags of the server."""

import socket
import subprocess
import sys
import time
import urllib.request

NAME = "demo"
KEY = "a-key"


class Server:
    """A server process on a free port."""

    def __init__(self, binary: str, model: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [binary, "serve", "--model", model, "--port", str(self.port), "--served-model-name", NAME]
        command += ["--api-key", KEY, "--max-num-seqs", "8", "--max-model-len", "2048", "--drain-grace", "0"]
        self.process = subprocess.Popen(command + sys.argv[3:])
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


def run(tests) -> None:
    """Runs the tests against one server. Exits with status 1 if any fails."""
    server = Server(sys.argv[1], sys.argv[2])
    failed = 0
    try:
        for function in tests:
            try:
                function(server)
                print(f"ok      {function.__name__}", flush=True)
            except Exception as error:  # noqa: BLE001
                failed += 1
                print(f"FAILED  {function.__name__}: {type(error).__name__}: {error}", flush=True)
    finally:
        server.process.kill()
    print(f"{len(tests) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


def expect(kind, part, call):
    """Checks that a call raises an error of this class whose text has this part. Returns the error."""
    try:
        call()
    except kind as error:
        assert part in str(error), error
        return error
    raise AssertionError(f"expected {kind.__name__}")
