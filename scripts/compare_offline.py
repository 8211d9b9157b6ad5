#!/usr/bin/env python3
"""Compares `octant batch` with the engine's own bench: the share of the device's time that it uses.

    cargo build --release && cargo bench --bench forward -- demo/smollm2-135m-instruct > forward.txt
    python3 scripts/compare_offline.py --octant target/release/octant --forward forward.txt

The file has requests of random tokens without an end. The expected time is that of their tokens at the rates
of the bench: prompts at its rate of prefill, answers at its rate of decode with 64 sequences. The share is
the expected time divided by the time of the run, the median of --reps runs. The time begins with the first
request: the start of the process and loading are left out.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

SEQUENCES, PROMPT, ANSWER = 64, 128, 64


def rates(text):
    """Tokens per second of prefill, and of decode with 64 sequences."""
    prefill = re.search(r"prefill +512 tokens +([\d.]+)", text)
    decode = re.search(rf"decode +batch +{SEQUENCES} +([\d.]+)", text)
    return float(prefill.group(1)), float(decode.group(1))


def requests(count, vocab):
    chooser = random.Random(1)
    for index in range(count):
        body = {
            "model": "demo",
            "prompt": [chooser.randrange(100, vocab) for _ in range(PROMPT)],
            "max_tokens": ANSWER,
            "ignore_eos": True,
        }
        line = {"custom_id": str(index), "method": "POST", "url": "/v1/completions", "body": body}
        yield json.dumps(line) + "\n"


def run(args, lines, folder):
    """Seconds and tokens per second that the run prints."""
    out = folder / "out.jsonl"
    out.unlink(missing_ok=True)
    command = [args.octant, "batch", lines, out, args.model, "--served-model-name", "demo"]
    command += ["--max-num-seqs", str(SEQUENCES), "--max-model-len", "512"]
    command += ["--enable-prefix-caching", "false"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"this run: (\d+) requests and (\d+) tokens in \S+ (\d+) tokens/s", done.stderr)
    if done.returncode != 0 or not found:
        raise SystemExit(f"octant batch ended with status {done.returncode}: {done.stderr[-2000:]}")
    return int(found.group(2)) / int(found.group(3)), int(found.group(3))


def main():
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--octant", required=True)
    parser.add_argument("--model", default="demo/smollm2-135m-instruct")
    parser.add_argument("--forward", required=True, type=Path, help="output of the bench `forward`")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--reps", type=int, default=3)
    args = parser.parse_args()
    prefill, decode = rates(args.forward.read_text())
    vocab = json.loads((Path(args.model) / "config.json").read_text())["vocab_size"]
    expected = args.requests * (PROMPT / prefill + ANSWER / decode)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = folder / "in.jsonl"
        lines.write_text("".join(requests(args.requests, vocab)))
        runs = [run(args, lines, folder) for _ in range(args.reps)]
    seconds = statistics.median(seconds for seconds, _ in runs)
    print(f"bench: prefill {prefill:.1f}, decode with {SEQUENCES} sequences {decode:.1f} tokens/s")
    print(f"{args.requests} requests of {PROMPT} + {ANSWER} tokens: expected {expected:.1f} s")
    print("runs: " + ", ".join(f"{seconds:.1f} s ({rate} tokens/s)" for seconds, rate in runs))
    print(f"share of the bench's rate: {expected / seconds:.3f}")


if __name__ == "__main__":
    main()
