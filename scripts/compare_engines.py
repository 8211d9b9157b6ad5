#!/usr/bin/env python3
"""Compares the engines of Octant and llama.cpp without HTTP: the same batches, cores and threads.

    python3 scripts/compare_engines.py --llama-batched-bench BIN --gguf FILE [--octant BIN] [--model DIR]
        [--rounds 5] [--json FILE]

A case is a batch of requests that are submitted together, each with a prompt of its own. A figure is the
tokens of the case, of the prompts or generated, per second of the whole batch, prompts included. Each round
runs every case once with each engine; the order of the engines alternates. A run of Octant is the median of
three batches after one to warm up; llama.cpp warms up by itself and runs a batch once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from compare_servers import spread

OCTANT, LLAMA = "Octant, FP8", "llama.cpp, Q8_0"


@dataclass(frozen=True)
class Case:
    """A batch. `counted`: the tokens of one request that a figure counts."""

    name: str
    batch: int
    prompt: int
    output: int
    counted: int


CASES = [
    Case("prompt of 512", 1, 512, 1, 512),
    Case("batch 1", 1, 16, 64, 64),
    Case("batch 4", 4, 16, 64, 64),
    Case("batch 16", 16, 16, 64, 64),
]


def octant_seconds(args: argparse.Namespace, case: Case) -> float:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "latency.json"
        command = [args.octant, "bench", "latency", args.model, "--threads", str(args.threads)]
        command += ["--max-model-len", "1024", "--max-num-seqs", "16", "--batch-size", str(case.batch)]
        command += ["--input-len", str(case.prompt), "--output-len", str(case.output)]
        command += ["--num-iters", "3", "--num-iters-warmup", "1", "--output-json", str(out)]
        run(command)
        return statistics.median(json.loads(out.read_text())["latencies"])


def llama_seconds(args: argparse.Namespace, case: Case) -> float:
    context = case.batch * (case.prompt + case.output)
    command = [args.llama_batched_bench, "-m", args.gguf, "-t", str(args.threads)]
    command += ["-c", str(max(context, 1024))]
    command += ["-b", "2048", "-ub", "512", "-npp", str(case.prompt), "-ntg", str(case.output)]
    command += ["-npl", str(case.batch), "--output-format", "jsonl"]
    lines = [line for line in run(command).splitlines() if line.startswith("{")]
    return json.loads(lines[-1])["t"]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed: {done.stderr[-2000:]}")
    return done.stdout


def compare(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Returns tokens per second of every round, by case and engine."""
    engines = [(OCTANT, octant_seconds), (LLAMA, llama_seconds)]
    figures: dict = {case.name: {OCTANT: [], LLAMA: []} for case in CASES}
    for turn in range(args.rounds):
        for case in CASES:
            for name, seconds in engines if turn % 2 == 0 else reversed(engines):
                rate = case.batch * case.counted / seconds(args, case)
                figures[case.name][name].append(rate)
        print(f"round {turn + 1} done (load average {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)
    return figures


def show(figures: dict[str, dict[str, list[float]]]) -> None:
    """Prints the medians, minima and maxima of each case, in tokens per second."""
    print(f"| tokens/s | {OCTANT} | {LLAMA} | ratio of medians |\n|---|---|---|---|")
    for case, engines in figures.items():
        medians = [statistics.median(values) for values in engines.values()]
        cells = [spread(values) for values in engines.values()]
        print(f"| {case} | {cells[0]} | {cells[1]} | {medians[0] / medians[1]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--octant", default="target/release/octant", help="the octant binary")
    parser.add_argument("--model", default="demo/smollm2-135m-instruct-fp8", help="Hugging Face directory")
    parser.add_argument("--llama-batched-bench", metavar="BIN", required=True, help="of llama.cpp")
    parser.add_argument("--gguf", metavar="FILE", required=True, help="the same model in Q8_0")
    parser.add_argument("--threads", type=int, default=2, help="threads of each engine")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each case and engine")
    parser.add_argument("--json", metavar="FILE", help="write the figures of every run to FILE")
    args = parser.parse_args()
    figures = compare(args)
    show(figures)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
