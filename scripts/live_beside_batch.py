#!/usr/bin/env python3
"""Measures live requests with and without a batch behind them, on simulated GPUs.

    python3 scripts/live_beside_batch.py --octant target/release/octant [--seconds 60] [--rate 2]

Starts a server that simulates the 340B on 8 H100, sends it streamed live requests at random times with a mean
of --rate per second, and prints percentiles of the time to first token and of the time between tokens: first
without a batch, then with a batch of --lines requests that runs all the time. Both runs send requests of the
same lengths at the same times, with other words, which the prefix cache does not have. A batch may delay a
request by less than a step of the model, which is about the median time between tokens.
"""

import argparse
import json
import random
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

MODEL = "demo/smollm2-135m-instruct"
CONFIG = "models/nemotron-4-340b-instruct"


def call(url, body=None, kind="application/json"):
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def words_of(seed, count):
    return " ".join(random.Random(seed).choices("sea lamp keeper stair storm ship rock".split(), k=count))


def upload(root, lines):
    """Uploads a batch file and starts it; the batch's id."""
    rows = []
    for number in range(lines):
        words = words_of(number, 150)
        body = {"model": "m", "messages": [{"role": "user", "content": words}], "max_tokens": 256}
        row = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        rows.append(json.dumps(row))
    text = "\n".join(rows) + "\n"
    form = (
        '--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--x\r\ncontent-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        f"{text}\r\n--x--\r\n"
    )
    file = call(f"{root}/v1/files", form.encode(), "multipart/form-data; boundary=x")
    batch = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    return call(f"{root}/v1/batches", batch)["id"]


def stream(root, seed, first_times, gaps):
    """One live request; adds its times in milliseconds."""
    messages = [{"role": "user", "content": words_of(seed, 100)}]
    body = {"model": "m", "messages": messages, "max_tokens": 100, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        f"{root}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    last = began = time.perf_counter()
    found = []
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            if not json.loads(line[6:])["choices"][0]["delta"].get("content"):
                continue
            now = time.perf_counter()
            found.append(1e3 * (now - last))
            last = now
    first_times.append(found[0])
    gaps.extend(found[1:])
    return last - began


def live(root, seconds, rate, run):
    """Sends live requests for some seconds; times to first token and between tokens, in milliseconds."""
    arrivals = random.Random(7)
    first_times, gaps, threads = [], [], []
    end, at, number = time.perf_counter() + seconds, time.perf_counter(), 0
    while (at := at + arrivals.expovariate(rate)) < end:
        time.sleep(max(0.0, at - time.perf_counter()))
        threads.append(threading.Thread(target=stream, args=(root, f"{run} {number}", first_times, gaps)))
        threads[-1].start()
        number += 1
    for thread in threads:
        thread.join()
    return first_times, gaps


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(name, first_times, gaps):
    figures = [percentile(values, share) for values in (first_times, gaps) for share in (0.5, 0.99)]
    print(f"{name:14} {len(first_times):8}" + "".join(f"{figure:10.1f}" for figure in figures), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--octant", required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=2)
    parser.add_argument("--lines", type=int, default=2000)
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--device", "simulate", "--simulate-config", CONFIG, "--data-dir", folder]
        command = [args.octant, "serve", "--model", MODEL, "--port", str(port), *flags]
        server = subprocess.Popen([*command, "--served-model-name", "m", "--log-level", "error"])
        try:
            while True:
                try:
                    call(f"{root}/v1/models")
                    break
                except OSError:
                    assert server.poll() is None, "the server ended while starting"
                    time.sleep(0.2)
            print(f"{'':14} {'requests':>8}  ttft p50  ttft p99   itl p50   itl p99   (ms)")
            live(root, 5, args.rate, "warm")
            report("no batch", *live(root, args.seconds, args.rate, "alone"))
            batch = upload(root, args.lines)
            time.sleep(5)
            report("with a batch", *live(root, args.seconds, args.rate, "beside"))
            state = call(f"{root}/v1/batches/{batch}")
            counts = state["request_counts"]
            print(f"batch: {state['status']}, {counts['completed']} of {counts['total']} lines completed")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
