#!/usr/bin/env python3
"""Measures how long running streams wait for prompts that arrive beside them, by `--target-itl`.

    python3 scripts/streams_beside_prompts.py --octant target/release/octant [--target-itl off,auto]
        [--model DIR] [--streams 16] [--rate 1] [--requests 64] [--rounds 3]

`octant bench serving` keeps --streams requests with short prompts running. A second client sends prompts of
512 tokens at --rate per second, each for one token. The server keeps no prefixes, so that every prompt is
computed. A row of the table has medians over the rounds: of the streams, the output tokens per second and
the times between tokens; of the prompts, the time to first token.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
from pathlib import Path

from compare_servers import Running, Server, client_summary, start, stop


def flags_of(args: argparse.Namespace, running: Running, turn: int) -> tuple[list[str], list[str]]:
    """Returns the client's flags for the streams and for the prompts."""
    both = ["--url", running.url, "--model", running.model, "--seed", str(turn), "--ignore-eos"]
    both += ["--temperature", "0"]
    streams = ["--concurrency", str(args.streams), "--requests", str(args.requests)]
    streams += ["--prompt-tokens", "16", "--max-tokens", "128"]
    prompts = ["--rate", str(args.rate), "--duration", str(args.seconds), "--prompt-tokens", "512"]
    return both + streams, [*both, *prompts, "--max-tokens", "1"]


def one_run(args: argparse.Namespace, target: str, turn: int) -> list[float]:
    command = [args.octant, "serve", "--model", args.model, "--port", "{port}", "--target-itl", target]
    command += ["--max-num-seqs", str(args.streams + 4), "--max-model-len", "1024"]
    command += ["--enable-prefix-caching", "false"]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        running = start(Server("Octant", [command]), os.sched_getaffinity(0), Path(folder))
        try:
            streams, prompts = flags_of(args, running, turn)
            send = lambda: found.update(client_summary(args.octant, prompts))  # noqa: E731
            beside = threading.Thread(target=send)
            if args.rate > 0:
                beside.start()
            summary = client_summary(args.octant, streams)
            if args.rate > 0:
                beside.join()
        finally:
            stop(running)
    if summary["failed"] or found.get("failed"):
        sys.exit(f"{target}: requests failed: {summary['failures']} {found.get('failures')}")
    ttft = found["ttft_ms"] if found else {"p50": 0.0, "p99": 0.0}
    itl = summary["itl_ms"]
    return [summary["output_tokens_per_second"], itl["p50"], itl["p99"], ttft["p50"], ttft["p99"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--octant", default="target/release/octant", help="the octant binary")
    parser.add_argument("--model", default="demo/smollm2-135m-instruct-fp8", help="Hugging Face directory")
    parser.add_argument("--target-itl", default="off,auto", help="values of --target-itl, by commas")
    parser.add_argument("--streams", type=int, default=16, help="requests that run all the time")
    parser.add_argument("--requests", type=int, default=64, help="of the streams, in all")
    parser.add_argument("--rate", type=float, default=1.0, help="prompts of 512 per second; 0: none")
    parser.add_argument("--seconds", type=float, default=10.0, help="time during which prompts arrive")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each value")
    args = parser.parse_args()
    targets = args.target_itl.split(",")
    runs: dict[str, list[list[float]]] = {target: [] for target in targets}
    for turn in range(args.rounds):
        for target in targets if turn % 2 == 0 else reversed(targets):
            runs[target].append(one_run(args, target, turn))
            print(f"round {turn + 1}, {target}: {runs[target][-1]}", file=sys.stderr, flush=True)
    print("| target | output tokens/s | ITL p50, ms | ITL p99, ms | TTFT p50, ms | TTFT p99, ms |")
    print("|---|---|---|---|---|---|")
    for target, rows in runs.items():
        medians = [statistics.median(column) for column in zip(*rows)]
        print(f"| {target} | " + " | ".join(f"{value:,.1f}" for value in medians) + " |", flush=True)


if __name__ == "__main__":
    main()
