#!/usr/bin/env python3
"""Compares `octant bench serving` with aiperf: both run the same workload alternately.

    python3 scripts/compare_load_clients.py --aiperf VENV --octant target/release/octant \\
        --url http://127.0.0.1:8000 --tokenizer MODEL_DIR [--pairs 3]

VENV is a virtual environment with `pip install aiperf`. With --scripted this script is the server and sends
tokens at known times, so that both clients can be compared with the truth and not only with each other. With
--flood it sends tokens as fast as it can, to octant alone, which shows the client's CPU time per token.
Where the names of the metrics differ, the tables use aiperf's: its ITL is the TPOT of `octant bench serving`,
and its ICL is the ITL there.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import threading
from pathlib import Path

FIRST_S, NEXT_S = 0.100, 0.020
# Row -> (key of aiperf, key of octant). Both interpolate percentiles.
ROWS = {
    "TTFT": ("time_to_first_token", "ttft_ms"),
    "ICL (our ITL)": ("inter_chunk_latency", "itl_ms"),
    "ITL (our TPOT)": ("inter_token_latency", "tpot_ms"),
    "request latency (our E2E)": ("request_latency", "e2e_ms"),
}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serves one connection: token n is sent FIRST_S + n * NEXT_S seconds after the request arrived."""
    loop = asyncio.get_running_loop()
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            start = loop.time()
            lengths = [
                line.split(b":")[1]
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            ]
            body = (
                json.loads(await reader.readexactly(int(lengths[0]))) if lengths and int(lengths[0]) else {}
            )
            if head.startswith(b"GET"):
                text = json.dumps(
                    {"object": "list", "data": [{"id": "scripted", "object": "model"}]}
                ).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                    % (len(text), text)
                )
                continue
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            count = body.get("max_tokens") or body.get("max_completion_tokens")

            def event(data: str) -> None:
                payload = f"data: {data}\n\n".encode()
                writer.write(b"%x\r\n%b\r\n" % (len(payload), payload))

            chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "scripted"}
            choice = {"index": 0, "delta": {"role": "assistant", "content": " word"}, "finish_reason": None}
            token = json.dumps(chunk | {"choices": [choice]})
            for n in range(count):
                if body["model"] == "flood":
                    await writer.drain()
                else:
                    await asyncio.sleep(start + FIRST_S + n * NEXT_S - loop.time())
                event(token)
            event(json.dumps(chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}))
            usage = {"prompt_tokens": 128, "completion_tokens": count, "total_tokens": 128 + count}
            event(json.dumps(chunk | {"choices": [], "usage": usage}))
            event("[DONE]")
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def scripted_server() -> str:
    """Starts the scripted server on its own thread and returns its URL."""
    ready, port = threading.Event(), []

    async def serve() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port.append(server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    ready.wait()
    return f"http://127.0.0.1:{port[0]}"


def run_octant(args: argparse.Namespace, url: str, model: str, seed: int) -> dict:
    """Runs `octant bench serving`. Returns (mean, p50, p99) or (value,) by figure."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        subprocess.run(
            [args.octant, "bench", "serving", "--url", url, "--model", model, "--json", out]
            + ["--concurrency", str(args.concurrency), "--requests", str(args.requests)]
            + ["--prompt-tokens", str(args.prompt_tokens), "--max-tokens", str(args.output_tokens)]
            + ["--ignore-eos", "--temperature", "0", "--warm-up", "2", "--seed", str(seed)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        summary = json.loads(out.read_text())["summary"]
    figures = {
        name: (summary[key]["mean"], summary[key]["p50"], summary[key]["p99"])
        for name, (_, key) in ROWS.items()
    }
    figures["output tokens/s"] = (summary["output_tokens_per_second"],)
    figures["prompt tokens per request"] = (summary["prompt_tokens"] / summary["ok"],)
    figures["output tokens per request"] = (summary["output_tokens"] / summary["ok"],)
    figures["client CPU, s"] = (summary["client_cpu_seconds"],)
    if model == "flood":
        figures["client CPU, us per token"] = (summary["client_cpu_us_per_chunk"],)
        figures["client CPU, share of a core"] = (summary["client_cpu_share"],)
    return figures


def run_aiperf(args: argparse.Namespace, url: str, model: str, seed: int) -> dict:
    """Runs aiperf. Returns the figures in the form of `run_octant`."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.times()
        subprocess.run(
            [str(Path(args.aiperf) / "bin" / "aiperf"), "profile", "--url", url, "--model", model]
            + ["--endpoint-type", "chat", "--streaming", "--tokenizer", args.tokenizer, "--ui", "none"]
            + ["--concurrency", str(args.concurrency), "--request-count", str(args.requests)]
            + ["--isl", str(args.prompt_tokens), "--osl", str(args.output_tokens), "--random-seed", str(seed)]
            + ["--warmup-request-count", "2", "--use-server-token-count", "--artifact-dir", folder]
            + ["--extra-inputs", '{"ignore_eos": true, "temperature": 0}'],
            check=True,
            stdout=subprocess.DEVNULL if not args.verbose else None,
        )
        after = os.times()
        report = json.loads(next(Path(folder).rglob("profile_export_aiperf.json")).read_text())
    figures = {}
    for name, (key, _) in ROWS.items():
        figures[name] = tuple(report[key][stat] for stat in ("avg", "p50", "p99"))
    figures["output tokens/s"] = (report["output_token_throughput"]["avg"],)
    figures["prompt tokens per request"] = (report["input_sequence_length"]["avg"],)
    figures["output tokens per request"] = (report["output_sequence_length"]["avg"],)
    # CPU time of all its processes from start to exit, including Python imports.
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    figures["client CPU, s"] = (cpu,)
    return figures


def show(runs: dict[str, list[dict]]) -> None:
    """Prints one row per figure: median, minimum and maximum over the runs of each client."""
    print("| figure | octant | aiperf | ratio of medians |\n|---|---|---|---|")
    for name in runs["octant"][0]:
        for i, stat in enumerate(("mean", "p50", "p99")[: len(runs["octant"][0][name])]):
            cells, medians = [], []
            for client in ("octant", "aiperf"):
                values = [run[name][i] for run in runs[client]]
                medians.append(statistics.median(values))
                cells.append(f"{medians[-1]:.2f} ({min(values):.2f} to {max(values):.2f})")
            label = f"{name}, {stat}, ms" if name in ROWS else name
            print(f"| {label} | {cells[0]} | {cells[1]} | {medians[0] / max(medians[1], 1e-9):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--aiperf", metavar="VENV", help="virtual environment with aiperf")
    parser.add_argument("--octant", default="target/release/octant", help="the octant binary")
    parser.add_argument("--url", help="server to measure")
    parser.add_argument(
        "--scripted",
        action="store_true",
        help="measure a server in this script that sends tokens at known times",
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name of the served model")
    parser.add_argument("--flood", action="store_true", help="measure the CPU time per token of octant alone")
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer for aiperf")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each client")
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight")
    parser.add_argument("--requests", type=int, default=32, help="requests of a run")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--output-tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--verbose", action="store_true", help="show the output of aiperf")
    args = parser.parse_args()
    if [args.scripted, args.flood, bool(args.url)].count(True) != 1:
        parser.error("give exactly one of --url, --scripted and --flood")
    if args.flood:
        args.concurrency, args.requests, args.output_tokens = 32, 64, 4000
        for name, values in run_octant(args, scripted_server(), "flood", seed=1).items():
            print(f"{name}: {', '.join(f'{value:.2f}' for value in values)}")
        return
    if not args.aiperf or not args.tokenizer:
        parser.error("--aiperf and --tokenizer are required")
    url, model = (scripted_server(), "scripted") if args.scripted else (args.url, args.model)
    runs: dict[str, list[dict]] = {"octant": [], "aiperf": []}
    for pair in range(args.pairs):
        # The order alternates from pair to pair, because a machine's speed drifts.
        order = [("octant", run_octant), ("aiperf", run_aiperf)]
        for client, run in order if pair % 2 == 0 else reversed(order):
            runs[client].append(run(args, url, model, seed=pair + 1))
            print(f"pair {pair + 1}: {client} done", flush=True)
    if args.scripted:
        n = args.output_tokens
        print(
            f"truth: TTFT {1e3 * FIRST_S} ms, gaps {1e3 * NEXT_S} ms, "
            f"E2E {1e3 * (FIRST_S + (n - 1) * NEXT_S):.0f} ms"
        )
    show(runs)


if __name__ == "__main__":
    main()
