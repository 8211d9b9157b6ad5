#!/usr/bin/env python3
"""Compares Octant with other servers: the same client and cores, one server at a time.

    python3 scripts/compare_servers.py --octant target/release/octant --model MODEL_DIR \\
        --llama-server BIN --gguf FILE [--dynamo VENV] [--cores 0,1] [--rounds 3] [--scale 1] [--json FILE]

--llama-server compares Octant on the CPU in FP8 with llama.cpp's server and the --gguf file of the same
model. Both compute every token of every prompt, because prefix caching is off in both: their caches would
keep different parts of a chat template's beginning.

--dynamo compares Octant on simulated GPUs at pace 0 with Dynamo's HTTP front end over its mocker. Neither
computes a model, so the figures measure HTTP, tokenizer, scheduling and streaming. VENV has `ai-dynamo`.

Each round starts, measures and stops each server; the order alternates between rounds. Client and server
share --cores. The CPU time of a server is that of all processes of its session, including threads and
reaped children, from just before the first request of a case to just after the last. Its memory is the sum
of VmHWM over its processes after all cases. Prompts differ between cases and are the same for both servers.
A failed request or an answer of the wrong length ends the comparison, because the figures would not be
comparable.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# Longest wait for a server to become ready.
READY_TIMEOUT_S = 180


@dataclass(frozen=True)
class Case:
    """A closed loop of `requests` requests, `concurrency` of them in flight at a time."""

    name: str
    concurrency: int
    requests: int
    prompt_tokens: int
    max_tokens: int


MODEL_CASES = [
    Case("1 stream", 1, 16, 128, 64),
    Case("4 streams", 4, 32, 128, 64),
    Case("16 streams", 16, 96, 128, 64),
    Case("one token, 1 at once", 1, 64, 16, 1),
    Case("one token, 16 at once", 16, 192, 16, 1),
]
FRONT_CASES = [
    Case("64 streams", 64, 1024, 128, 64),
    Case("256 streams", 256, 2048, 128, 64),
    Case("one token, 64 at once", 64, 4096, 128, 1),
]


@dataclass(frozen=True)
class Server:
    """The commands and environment that start a server; {port} and {folder} are replaced in them."""

    name: str
    commands: list[list[str]]
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A server that is ready: it has answered a request."""

    url: str
    model: str
    sessions: list[subprocess.Popen]
    seconds_to_ready: float


def octant_on_cpu(args: argparse.Namespace) -> Server:
    command = [
        args.octant,
        "serve",
        "--model",
        args.model,
        "--port",
        "{port}",
        "--threads",
        str(len(args.cores)),
    ]
    command += ["--max-num-seqs", "16", "--max-model-len", "512", "--enable-prefix-caching", "false"]
    return Server("Octant, FP8", [command])


def llama_server(args: argparse.Namespace) -> Server:
    command = [
        args.llama_server,
        "-m",
        args.gguf,
        "--port",
        "{port}",
        "-t",
        str(len(args.cores)),
        "-np",
        "16",
    ]
    command += ["-c", str(16 * 512), "--cont-batching", "--no-webui", "--no-cache-prompt", "--cache-ram", "0"]
    return Server("llama.cpp, " + args.gguf_type, [command])


def octant_simulated(args: argparse.Namespace) -> Server:
    command = [args.octant, "serve", "--model", args.model, "--port", "{port}", "--device", "simulate"]
    command += ["--simulate-pace", "0", "--tensor-parallel-size", "1"]
    return Server(
        "Octant, simulated", [command + ["--max-num-seqs", "256", "--max-num-batched-tokens", "8192"]]
    )


def dynamo(args: argparse.Namespace) -> Server:
    """Returns Dynamo's front end and mock engine, two processes that find each other through files.

    A speed-up of 0 is documented as infinite, but version 1.6.1 then takes 5.7 ms per token, which would
    dominate the measurement. The log level is `warn`, because the default level writes about 5 KB per
    request.
    """
    python = str(Path(args.dynamo) / "bin" / "python")
    front = [python, "-m", "dynamo.frontend", "--http-port", "{port}", "--discovery-backend", "file"]
    engine = [python, "-m", "dynamo.mocker", "--model-path", args.model, "--discovery-backend", "file"]
    engine += ["--speedup-ratio", "1000000", "--max-num-seqs", "256", "--max-num-batched-tokens", "8192"]
    env = {"DYN_FILE_KV": "{folder}/discovery", "DYN_LOG": "warn", "HF_HUB_OFFLINE": "1"}
    return Server("Dynamo, mocker", [front, engine], env)


def start(server: Server, cores: set[int], folder: Path) -> Running:
    """Starts the processes and waits until the server has answered a chat with one token."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    fill = lambda text: text.replace("{port}", port).replace("{folder}", str(folder))  # noqa: E731
    env = {**os.environ, **{key: fill(value) for key, value in server.env.items()}}
    began, sessions = time.monotonic(), []
    for n, command in enumerate(server.commands):
        with open(folder / f"{n}.log", "wb") as log:
            sessions.append(
                subprocess.Popen(
                    [fill(word) for word in command],
                    stdout=log,
                    stderr=log,
                    env=env,
                    start_new_session=True,
                    preexec_fn=lambda: os.sched_setaffinity(0, cores),
                )
            )
    running = Running(f"http://127.0.0.1:{port}", "", sessions, 0.0)
    while time.monotonic() - began < READY_TIMEOUT_S and all(session.poll() is None for session in sessions):
        if model := first_answer(running.url):
            running.model, running.seconds_to_ready = model, time.monotonic() - began
            return running
        time.sleep(0.02)
    stop(running)
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
    sys.exit(f"{server.name} did not become ready:\n{logs}")


def first_answer(url: str) -> str | None:
    """Returns the name of the served model if the server answers a chat request, else None."""
    try:
        with urllib.request.urlopen(url + "/v1/models", timeout=5) as answer:
            listed = json.load(answer)["data"]
        if not listed:
            return None
        body = {"model": listed[0]["id"], "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), head)
        with urllib.request.urlopen(request, timeout=60) as answer:
            json.load(answer)
        return listed[0]["id"]
    except (urllib.error.URLError, ConnectionError, TimeoutError, KeyError, ValueError):
        return None


def stop(running: Running) -> None:
    """Stops a server with SIGTERM and, after 20 s, with SIGKILL."""
    for session in running.sessions:
        session.send_signal(signal.SIGTERM)
    for session in running.sessions:
        try:
            session.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(session.pid, signal.SIGKILL)
            session.wait()


def processes(session: int) -> dict[int, list[str]]:
    """Returns the fields of /proc/PID/stat from `state` on, by PID, for all processes of a session."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # A program's name may contain spaces and parentheses; no later field does.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session:
                found[int(entry.name)] = fields
    return found


def cpu_seconds(running: Running) -> list[float]:
    """Returns the CPU time of each session in seconds: user and system, including reaped children."""
    total = lambda pid: sum(sum(map(int, fields[11:15])) for fields in processes(pid).values())  # noqa: E731
    return [total(session.pid) / TICKS for session in running.sessions]


def memory_mib(running: Running, key: str) -> list[float]:
    """Returns `VmHWM` (peak) or `VmRSS` (now) in MiB, summed over the processes of each session."""
    totals = []
    for session in running.sessions:
        kib = 0
        for pid in processes(session.pid):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            kib += next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))
        totals.append(kib / 1024)
    return totals


def client_summary(octant: str, flags: list[str], cores: set[int] | None = None) -> dict:
    """Runs `octant bench serving` with these flags, on these cores only, and returns its summary."""
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        command = [octant, "bench", "serving", "--json", str(out), *flags]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=pin)
        if not out.exists():
            sys.exit(f"the client failed: {done.stderr.decode(errors='replace')[-2000:]}")
        return json.loads(out.read_text())["summary"]


def bench(args: argparse.Namespace, running: Running, case: Case, requests: int, seed: int) -> dict:
    """Sends the requests of a case and returns the client's summary."""
    flags = ["--url", running.url, "--model", running.model, "--seed", str(seed)]
    flags += ["--concurrency", str(case.concurrency), "--requests", str(requests)]
    flags += ["--prompt-tokens", str(case.prompt_tokens), "--max-tokens", str(case.max_tokens)]
    summary = client_summary(args.octant, [*flags, "--ignore-eos", "--temperature", "0"], args.cores)
    if summary["ok"] != requests:
        sys.exit(f"{case.name}: {summary['failed']} of {requests} requests failed: {summary['failures']}")
    if summary["output_tokens"] != requests * case.max_tokens:
        sys.exit(
            f"{case.name}: {summary['output_tokens']} tokens for {requests} answers of {case.max_tokens}"
        )
    return summary


def measure(args: argparse.Namespace, running: Running, case: Case, seed: int) -> dict[str, float]:
    """Runs a case, after a warm-up, and returns its figures."""
    requests = max(int(case.requests * args.scale), case.concurrency)
    bench(args, running, case, min(2 * case.concurrency, requests), seed + 500)
    before = cpu_seconds(running)
    summary = bench(args, running, case, requests, seed)
    spent = [after - was for after, was in zip(cpu_seconds(running), before)]
    tokens = summary["output_tokens"]
    figures = {
        "requests/s": summary["requests_per_second"],
        "output tokens/s": summary["output_tokens_per_second"],
        "server CPU, us per output token": 1e6 * sum(spent) / tokens,
    }
    if len(spent) > 1:
        figures["of that the front end, us"] = 1e6 * spent[0] / tokens
    figures |= {f"TTFT, {p}, ms": summary["ttft_ms"][p] for p in ("p50", "p99")}
    if case.max_tokens > 1:
        figures |= {f"ITL, {p}, ms": summary["itl_ms"][p] for p in ("p50", "p99")}
        figures["tokens per chunk"] = summary["tokens_per_chunk"]
    figures["server CPU, cores"] = sum(spent) / summary["seconds"]
    figures["client CPU, cores"] = summary["client_cpu_share"]
    figures["prompt tokens per request"] = summary["prompt_tokens"] / summary["ok"]
    return figures


def one_run(
    args: argparse.Namespace, server: Server, cases: list[Case], turn: int
) -> dict[str, dict[str, float]]:
    """Starts a server, runs all cases and stops it. Returns figures by case, and those of the whole run."""
    with tempfile.TemporaryDirectory() as folder:
        running = start(server, args.cores, Path(folder))
        try:
            whole = {"first answer after start, s": running.seconds_to_ready}
            whole["memory after the first answer, MiB"] = sum(memory_mib(running, "VmRSS"))
            runs = {}
            for n, case in enumerate(cases):
                runs[case.name] = measure(args, running, case, seed=1000 * (turn + 1) + n)
            peaks = memory_mib(running, "VmHWM")
            whole["peak memory, MiB"] = sum(peaks)
            if len(peaks) > 1:
                whole["of that the front end, MiB"] = peaks[0]
            return {"whole run": whole, **runs}
        finally:
            stop(running)


def compare(args: argparse.Namespace, servers: list[Server], cases: list[Case]) -> dict[str, list[dict]]:
    """Runs all rounds. Returns the runs of each server in the order of the rounds."""
    runs: dict[str, list[dict]] = {server.name: [] for server in servers}
    for turn in range(args.rounds):
        for server in servers if turn % 2 == 0 else reversed(servers):
            load = os.getloadavg()[0]
            runs[server.name].append(one_run(args, server, cases, turn))
            print(
                f"round {turn + 1}: {server.name} done (load average before it {load:.1f})",
                file=sys.stderr,
                flush=True,
            )
    return runs


def show(runs: dict[str, list[dict]]) -> None:
    """Prints one row per figure: median, minimum and maximum over the rounds."""
    names = list(runs)
    print(f"| case | figure | {names[0]} | {names[1]} | ratio of medians |\n|---|---|---|---|---|")
    for case in runs[names[0]][0]:
        figures = dict.fromkeys(figure for name in names for figure in runs[name][0][case])
        for figure in figures:
            cells, medians = [], []
            for name in names:
                values = [run[case][figure] for run in runs[name] if figure in run[case]]
                if not values:
                    cells.append("")
                    continue
                medians.append(statistics.median(values))
                cells.append(spread(values))
            ratio = f"{medians[0] / medians[1]:.2f}" if len(medians) == 2 and medians[1] else ""
            print(f"| {case} | {figure} | {cells[0]} | {cells[1]} | {ratio} |")
    print()


def spread(values: list[float]) -> str:
    """The median, and in brackets the minimum and the maximum."""
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--octant", default="target/release/octant", help="the octant binary, used as server and as client"
    )
    parser.add_argument("--model", default="demo/smollm2-135m-instruct", help="Hugging Face directory")
    parser.add_argument("--llama-server", metavar="BIN", help="llama.cpp's server")
    parser.add_argument("--gguf", metavar="FILE", help="the same model for llama.cpp")
    parser.add_argument("--gguf-type", default="Q8_0", help="quantisation of --gguf, for the table header")
    parser.add_argument("--dynamo", metavar="VENV", help="virtual environment with ai-dynamo")
    parser.add_argument("--cores", default="0,1", type=lambda text: {int(core) for core in text.split(",")})
    parser.add_argument("--rounds", type=int, default=3, help="runs of each server")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor for the number of requests of each case"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures of every run to FILE")
    args = parser.parse_args()
    if not args.llama_server and not args.dynamo:
        parser.error("give --llama-server, --dynamo or both")
    if args.llama_server and not args.gguf:
        parser.error("--llama-server requires --gguf")
    return args


def main() -> None:
    args = arguments()
    # SIGTERM becomes SystemExit, so that the `finally` blocks stop the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    suites = []
    if args.llama_server:
        suites.append(([octant_on_cpu(args), llama_server(args)], MODEL_CASES))
    if args.dynamo:
        suites.append(([octant_simulated(args), dynamo(args)], FRONT_CASES))
    results = []
    for servers, cases in suites:
        results.append(compare(args, servers, cases))
        show(results[-1])
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
