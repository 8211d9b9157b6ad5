#!/usr/bin/env python3
"""Compares the time per token of constrained answers with that of plain answers, on a running server.

    octant serve demo/smollm2-135m-instruct &
    python3 scripts/compare_constrained.py [--url http://127.0.0.1:8000] [--rounds 7] [--batches 1,16]

A round asks for each kind of answer once, and begins with another kind than the round before, so that all
kinds meet the same state of the machine. Each answer has --tokens tokens; the time is from the first token
to the last, as the client receives them, and that of a batch is the median of its answers. The first round
is not counted: it compiles the constraints and fills the prefix cache.
"""

import argparse
import json
import statistics
import threading
import time
import urllib.request

ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "text": {"type": "string"}, "count": {"type": "integer"}},
    "required": ["name", "text", "count"],
    "additionalProperties": False,
}
# None of the constraints can be met in fewer tokens than are measured: short answers would share more of
# their time with the prefill of the others.
KINDS = {
    "plain": {},
    "any text by an expression": {"structured_outputs": {"regex": r"[\s\S]*"}},
    "array of any JSON values": {"structured_outputs": {"json": {"type": "array", "minItems": 80}}},
    "array of objects by a schema": {
        "structured_outputs": {"json": {"type": "array", "items": ITEM, "minItems": 40}}
    },
}


def time_per_token(url, more, tokens, seed):
    """Seconds between tokens of one answer."""
    body = {
        "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse keeper, as data."}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "seed": seed,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        **more,
    }
    request = urllib.request.Request(
        url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    first = last = None
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            count = json.loads(line[6:])["usage"]["completion_tokens"]
            if count > 0 and (last is None or count > last[0]):
                last = (count, time.perf_counter())
                first = first or last
    return (last[1] - first[1]) / max(last[0] - first[0], 1)


def batch(url, more, tokens, rows):
    """Median time per token, in seconds, of `rows` answers at once."""
    times = [0.0] * rows

    def ask(row):
        times[row] = time_per_token(url, more, tokens, row)

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(rows)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batches", default="1,16", help="numbers of answers at once, separated by commas")
    args = parser.parse_args()
    print(f"{'rows':>4}  {'kind':30}  ms per token  to plain")
    for rows in map(int, args.batches.split(",")):
        times = {kind: [] for kind in KINDS}
        for round_number in range(args.rounds + 1):
            kinds = list(KINDS)
            first = round_number % len(kinds)
            for kind in kinds[first:] + kinds[:first]:
                seconds = batch(args.url, KINDS[kind], args.tokens, rows)
                if round_number > 0:
                    times[kind].append(seconds)
        plain = statistics.median(times["plain"])
        for kind, seconds in times.items():
            median = statistics.median(seconds)
            print(f"{rows:4}  {kind:30}  {1e3 * median:12.2f}  {median / plain:8.3f}", flush=True)


if __name__ == "__main__":
    main()
