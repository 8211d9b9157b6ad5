#!/usr/bin/env python3
"""Compares the time per token of constrained answers with that of plain answers, on a running server.

    octant serve demo/smollm2-135m-instruct &
    python3 scripts/compare_constrained.py --octant target/release/octant [--rounds 8] [--batches 1,16]

`octant bench serving` is the client. A round asks for each kind of answer once, and begins with another kind
than the round before, so that all kinds meet the same state of the machine. The first round is not counted:
it compiles the constraints and fills the prefix cache. The time is the median over rounds of the median time
per token after the first.
"""

import argparse
import json
import statistics
import sys

from compare_servers import client_summary

ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "text": {"type": "string"}, "count": {"type": "integer"}},
    "required": ["name", "text", "count"],
    "additionalProperties": False,
}
# No answer meets its constraint within the tokens that are measured: short answers would share more of their
# time with the prefill of the others.
KINDS = {
    "plain": {},
    "any text by an expression": {"regex": r"[\s\S]*END OF TEXT"},
    "array of any JSON values": {"json": {"type": "array", "minItems": 80}},
    "array of objects by a schema": {"json": {"type": "array", "items": ITEM, "minItems": 40}},
}


def time_per_token(args, kind, rows):
    """Median milliseconds per token of `rows` answers at once."""
    constraint = {"structured_outputs": KINDS[kind]} if KINDS[kind] else {}
    flags = ["--url", args.url, "--concurrency", str(rows), "--requests", str(rows), "--seed", "1"]
    flags += ["--max-tokens", str(args.tokens), "--ignore-eos", "--temperature", "1"]
    summary = client_summary(args.octant, [*flags, "--extra-body", json.dumps({"seed": 1, **constraint})])
    if summary["output_tokens"] != rows * args.tokens:
        sys.exit(f"{kind}: {summary['output_tokens']} tokens for {rows} answers of {args.tokens}")
    return summary["tpot_ms"]["p50"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--octant", required=True, help="the binary, whose bench is the client")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--batches", default="1,16", help="numbers of answers at once, separated by commas")
    args = parser.parse_args()
    print(f"{'rows':>4}  {'kind':30}  ms per token  to plain")
    kinds = list(KINDS)
    for rows in map(int, args.batches.split(",")):
        times = {kind: [] for kind in kinds}
        for round_number in range(args.rounds + 1):
            first = round_number % len(kinds)
            for kind in kinds[first:] + kinds[:first]:
                figure = time_per_token(args, kind, rows)
                if round_number > 0:
                    times[kind].append(figure)
        medians = {kind: statistics.median(figures) for kind, figures in times.items()}
        for kind, median in medians.items():
            print(f"{rows:4}  {kind:30}  {median:12.2f}  {median / medians['plain']:8.3f}", flush=True)


if __name__ == "__main__":
    main()
