#!/usr/bin/env python3
"""Octant beside other servers: the same client, the same cores, one server after the other.

    python3 scripts/compare_servers.py --octant target/release/octant --model MODEL_DIR \\
        --llama-server BIN --gguf FILE [--dynamo VENV] [--cores 0,1] [--rounds 3] [--scale 1] [--json FILE]

With --llama-server: Octant on the CPU in FP8 against llama.cpp's server with --gguf, for the model that both hold.
Both compute every token of every prompt: they differ in how much of a chat template's beginning they would remember.
With --dynamo: Octant over simulated GPUs at pace 0 against Dynamo's HTTP front end over its mocker, neither of which
computes a model, so that what is measured is HTTP, tokenizer, scheduling and streaming. VENV has `ai-dynamo`.

Each round starts, measures and stops each server; who is first changes from round to round. Client and server share
--cores. A server's CPU time is that of all processes of its session, threads and reaped children included, from just
before a case's first request to just after its last; its memory is the sum of their VmHWM when all cases are done.
Prompts differ between cases and are alike for both servers. A failed request, or an answer of another length than
asked for, ends the comparison: such figures would not be comparable.
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
PATIENCE_S = 180


@dataclass(frozen=True)
class Case:
    """A closed loop of `requests`, `concurrency` of them out at all times."""

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
    """How one is started: the processes' commands, in which {port} is where HTTP is to be, and their environment."""

    name: str
    commands: list[list[str]]
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A server that has answered a request."""

    url: str
    model: str
    sessions: list[subprocess.Popen]
    seconds_to_ready: float


def octant_on_cpu(args: argparse.Namespace) -> Server:
    command = [args.octant, "serve", "--model", args.model, "--port", "{port}", "--threads", str(len(args.cores))]
    command += ["--max-num-seqs", "16", "--max-model-len", "512", "--enable-prefix-caching", "false"]
    return Server("Octant, FP8", [command])


def llama_server(args: argparse.Namespace) -> Server:
    command = [args.llama_server, "-m", args.gguf, "--port", "{port}", "-t", str(len(args.cores)), "-np", "16"]
    command += ["-c", str(16 * 512), "--cont-batching", "--no-webui", "--no-cache-prompt", "--cache-ram", "0"]
    return Server("llama.cpp, " + args.gguf_type, [command])


def octant_simulated(args: argparse.Namespace) -> Server:
    command = [args.octant, "serve", "--model", args.model, "--port", "{port}", "--device", "simulate"]
    command += ["--simulate-pace", "0", "--tensor-parallel-size", "1"]
    return Server("Octant, simulated", [command + ["--max-num-seqs", "256", "--max-num-batched-tokens", "8192"]])


def dynamo(args: argparse.Namespace) -> Server:
    """Front end and mock engine as two processes that find each other through files, with no other services.

    A speed-up of 0 is documented as infinite, but 1.6.1 then takes 5.7 ms a token, which would be measured in place of
    the front end. Its logs are cut to warnings, since at its default it writes some 5 KB for a request.
    """
    python = str(Path(args.dynamo) / "bin" / "python")
    front = [python, "-m", "dynamo.frontend", "--http-port", "{port}", "--discovery-backend", "file"]
    engine = [python, "-m", "dynamo.mocker", "--model-path", args.model, "--discovery-backend", "file"]
    engine += ["--speedup-ratio", "1000000", "--max-num-seqs", "256", "--max-num-batched-tokens", "8192"]
    env = {"DYN_FILE_KV": "{folder}/discovery", "DYN_LOG": "warn", "HF_HUB_OFFLINE": "1"}
    return Server("Dynamo, mocker", [front, engine], env)


def start(server: Server, cores: set[int], folder: Path) -> Running:
    """Starts the processes and waits until a chat of one token has been answered."""
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
    while time.monotonic() - began < PATIENCE_S and all(session.poll() is None for session in sessions):
        if model := first_answer(running.url):
            running.model, running.seconds_to_ready = model, time.monotonic() - began
            return running
        time.sleep(0.02)
    stop(running)
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
    sys.exit(f"{server.name} did not get ready:\n{logs}")


def first_answer(url: str) -> str | None:
    """The model's name, if the server has one and it answers."""
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
    for session in running.sessions:
        session.send_signal(signal.SIGTERM)
    for session in running.sessions:
        try:
            session.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(session.pid, signal.SIGKILL)
            session.wait()


def processes(session: int) -> dict[int, list[str]]:
    """The fields of /proc/PID/stat, from the state on, of all processes of a session."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # A program's name may hold spaces and parentheses; what follows the last one does not.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session:
                found[int(entry.name)] = fields
    return found


def cpu_seconds(running: Running) -> list[float]:
    """CPU time of each of the server's sessions: user, system, and both of children that have been waited for."""
    total = lambda pid: sum(sum(map(int, fields[11:15])) for fields in processes(pid).values())  # noqa: E731
    return [total(session.pid) / TICKS for session in running.sessions]


def memory_mib(running: Running, key: str) -> list[float]:
    """Of each session, the sum of `VmHWM` (peak) or `VmRSS` (now); pages that processes share count for each."""
    totals = []
    for session in running.sessions:
        kib = 0
        for pid in processes(session.pid):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            kib += next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))
        totals.append(kib / 1024)
    return totals


def bench(args: argparse.Namespace, running: Running, case: Case, requests: int, seed: int) -> dict:
    """A run of the client; its summary."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        command = [args.octant, "bench", "serving", "--url", running.url, "--model", running.model, "--json", str(out)]
        command += ["--concurrency", str(case.concurrency), "--requests", str(requests), "--seed", str(seed)]
        command += ["--prompt-tokens", str(case.prompt_tokens), "--max-tokens", str(case.max_tokens)]
        command += ["--ignore-eos", "--temperature", "0"]
        pin = lambda: os.sched_setaffinity(0, args.cores)  # noqa: E731
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=pin)
        if not out.exists():
            sys.exit(f"the client failed: {done.stderr.decode(errors='replace')[-2000:]}")
        summary = json.loads(out.read_text())["summary"]
    if summary["ok"] != requests:
        sys.exit(f"{case.name}: {summary['failed']} of {requests} requests failed: {summary['failures']}")
    if summary["output_tokens"] != requests * case.max_tokens:
        sys.exit(f"{case.name}: {summary['output_tokens']} tokens for {requests} answers of {case.max_tokens}")
    return summary


def measure(args: argparse.Namespace, running: Running, case: Case, seed: int) -> dict[str, float]:
    """The figures of a case."""
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


def one_run(args: argparse.Namespace, server: Server, cases: list[Case], turn: int) -> dict[str, dict[str, float]]:
    """A server's life: figures by case, and those of the whole."""
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
    """All rounds, the runs of each server in the order of rounds."""
    runs: dict[str, list[dict]] = {server.name: [] for server in servers}
    for turn in range(args.rounds):
        for server in servers if turn % 2 == 0 else reversed(servers):
            load = os.getloadavg()[0]
            runs[server.name].append(one_run(args, server, cases, turn))
            print(f"round {turn + 1}: {server.name} done (load average before it {load:.1f})", file=sys.stderr, flush=True)
    return runs


def show(runs: dict[str, list[dict]]) -> None:
    """A row for each figure: medians over the rounds, with the least and the greatest."""
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
                cells.append(f"{number(medians[-1])} ({number(min(values))} to {number(max(values))})")
            ratio = f"{medians[0] / medians[1]:.2f}" if len(medians) == 2 and medians[1] else ""
            print(f"| {case} | {figure} | {cells[0]} | {cells[1]} | {ratio} |")
    print()


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--octant", default="target/release/octant", help="server and client")
    parser.add_argument("--model", default="demo/smollm2-135m-instruct", help="Hugging Face directory")
    parser.add_argument("--llama-server", metavar="BIN")
    parser.add_argument("--gguf", metavar="FILE")
    parser.add_argument("--gguf-type", default="Q8_0", help="how --gguf is quantised, for the table's head")
    parser.add_argument("--dynamo", metavar="VENV")
    parser.add_argument("--cores", default="0,1", type=lambda text: {int(core) for core in text.split(",")})
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="requests of a case are multiplied by this")
    parser.add_argument("--json", metavar="FILE", help="write the figures of every run")
    args = parser.parse_args()
    if not args.llama_server and not args.dynamo:
        parser.error("one of --llama-server and --dynamo, or both")
    if args.llama_server and not args.gguf:
        parser.error("--llama-server needs --gguf")
    return args


def main() -> None:
    args = arguments()
    # As an exit, so that servers are stopped on the way out.
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
