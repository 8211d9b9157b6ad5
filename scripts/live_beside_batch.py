#!/usr/bin/env python3
"""Measures live requests with and without a batch behind them, on simulated GPUs.

    python3 scripts/live_beside_batch.py --octant target/release/octant [--seconds 60] [--rate 2]

Starts a server that simulates the 340B on 8 H100. `octant bench serving` sends it live requests at random
times, first without a batch, then with a batch of --lines requests that runs all the time. Both runs send at
the same times; the server keeps no prefixes, so that the second finds nothing of the first. A batch may delay
a request by less than a step of the model, which is about the median time between tokens.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from compare_servers import Server, client_summary, start, stop

MODEL = "demo/smollm2-135m-instruct"
CONFIG = "models/nemotron-4-340b-instruct"
PATH = "/v1/chat/completions"


def call(url, body=None, kind="application/json"):
    request = urllib.request.Request(url, body, {"content-type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def start_batch(url, model, lines):
    """Uploads a file of requests and starts its batch; returns the batch's id."""
    rows = []
    for number in range(lines):
        words = random.Random(number).choices("sea lamp keeper stair storm ship rock".split(), k=150)
        messages = [{"role": "user", "content": " ".join(words)}]
        body = {"model": model, "messages": messages, "max_tokens": 256}
        row = {"custom_id": f"line-{number}", "method": "POST", "url": PATH, "body": body}
        rows.append(json.dumps(row) + "\n")
    form = (
        '--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--x\r\ncontent-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        f"{''.join(rows)}\r\n--x--\r\n"
    )
    file = call(f"{url}/v1/files", form.encode(), "multipart/form-data; boundary=x")
    batch = {"input_file_id": file["id"], "endpoint": PATH, "completion_window": "24h"}
    return call(f"{url}/v1/batches", json.dumps(batch).encode())["id"]


def live(args, running, name):
    """Sends live requests for some seconds and prints their latencies."""
    flags = ["--url", running.url, "--model", running.model, "--seed", "7", "--rate", str(args.rate)]
    flags += ["--duration", str(args.seconds), "--prompt-tokens", "128", "--max-tokens", "100"]
    summary = client_summary(args.octant, [*flags, "--ignore-eos"])
    if summary["failed"]:
        sys.exit(f"{name}: {summary['failed']} requests failed: {summary['failures']}")
    figures = [summary[figure][p] for figure in ("ttft_ms", "itl_ms") for p in ("p50", "p99")]
    print(f"{name:14} {summary['ok']:8}" + "".join(f"{figure:10.1f}" for figure in figures), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--octant", required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=2, help="live requests per second")
    parser.add_argument("--lines", type=int, default=2000, help="requests of the batch")
    args = parser.parse_args()
    command = [args.octant, "serve", "--model", MODEL, "--port", "{port}", "--device", "simulate"]
    command += ["--simulate-config", CONFIG, "--data-dir", "{folder}/data"]
    command += ["--enable-prefix-caching", "false"]
    with tempfile.TemporaryDirectory() as folder:
        running = start(Server("Octant, simulated", [command]), os.sched_getaffinity(0), Path(folder))
        try:
            print(f"{'':14} {'requests':>8}  ttft p50  ttft p99   itl p50   itl p99   (ms)")
            live(args, running, "no batch")
            batch = start_batch(running.url, running.model, args.lines)
            time.sleep(5)
            live(args, running, "with a batch")
            state = call(f"{running.url}/v1/batches/{batch}")
            counts = state["request_counts"]
            print(f"batch: {state['status']}, {counts['completed']} of {counts['total']} lines completed")
        finally:
            stop(running)


if __name__ == "__main__":
    main()
