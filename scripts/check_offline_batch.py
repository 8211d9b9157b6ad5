#!/usr/bin/env python3
"""Checks `octant batch` on large files: records after kills, and memory.

    python3 scripts/check_offline_batch.py kills --octant target/release/octant [--lines 5000] [--kills 5]
    python3 scripts/check_offline_batch.py memory --octant target/release/octant [--megabytes 1000]

`kills` runs a file once without interruption and once with SIGKILL after a random number of further records,
each followed by the same command again. The sorted records of both must be the same bytes, with every
custom_id once. `memory` writes a file of the given size and prints the peak resident memory (VmHWM) of the
run, beside that of a file of a tenth of the size. Other flags (`--device simulate …`) go to `octant batch`.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "demo/smollm2-135m-instruct"
PATH = "/v1/chat/completions"
WORDS = "sea lamp keeper stair storm ship rock gull harbour rope bell fog".split()


def write_lines(path, count, words, max_tokens):
    """Writes requests for chat with questions of `words` words; every tenth is not valid."""
    with open(path, "w") as out:
        for number in range(count):
            text = " ".join(random.Random(number).choices(WORDS, k=words))
            body = {"model": Path(MODEL).name, "max_tokens": max_tokens, "temperature": 1.0}
            body["messages"] = [{"role": "user", "content": f"{number}: {text}"}]
            if number % 10 == 9:
                body["temperature"] = -1
            row = {"custom_id": f"line-{number}", "method": "POST", "url": PATH, "body": body}
            out.write(json.dumps(row) + "\n")


def start(args, source, output):
    command = [args.octant, "batch", source, output, MODEL, *args.flags]
    return subprocess.Popen([str(part) for part in command], stderr=open(f"{output}.log", "a"))


def records(output):
    """The sorted lines of the answers and of the errors."""
    errors = output.with_suffix(".errors.jsonl")
    return sorted(output.read_bytes().splitlines()) + sorted(errors.read_bytes().splitlines())


def written(output):
    """Records that both files have, counted by their ends."""
    files = [output, output.with_suffix(".errors.jsonl")]
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def kills(args, folder):
    source, whole, broken = folder / "in.jsonl", folder / "whole.jsonl", folder / "broken.jsonl"
    write_lines(source, args.lines, 12, 8)
    begun = time.time()
    status = start(args, source, whole).wait()
    seconds = time.time() - begun
    print(f"uninterrupted: status {status}, {seconds:.0f} s, {len(records(whole))} records")
    dice = random.Random(args.seed)
    for number in range(args.kills):
        wanted = written(broken) + dice.randint(1, args.lines // (args.kills + 1))
        process = start(args, source, broken)
        while written(broken) < wanted and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            sys.exit(f"the run ended with status {process.returncode} before kill {number + 1}")
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"kill {number + 1}: after {written(broken)} of {args.lines} records")
    status = start(args, source, broken).wait()
    ids = [json.loads(record)["custom_id"] for record in records(broken)]
    print(f"resumed: status {status}, {len(ids)} records, {len(set(ids))} of {args.lines} ids")
    if len(ids) != args.lines or len(set(ids)) != args.lines:
        sys.exit("an id is missing or doubled")
    if records(broken) != records(whole):
        sys.exit("the records differ from those of the uninterrupted run")
    print("the records are the same bytes")


def peak_mib(args, source, output):
    """Runs a file; returns the exit status, the seconds and the peak resident memory in MiB."""
    begun, peak = time.time(), 0
    process = start(args, source, output)
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.2)
    return process.wait(), time.time() - begun, peak / 1024


def memory(args, folder):
    for megabytes in (args.megabytes / 10, args.megabytes):
        source = folder / f"{megabytes}.jsonl"
        # A line of 600 words has about 3,700 bytes.
        write_lines(source, int(megabytes * 1e6 / 3700), 600, 1)
        status, seconds, peak = peak_mib(args, source, folder / f"{megabytes}-out.jsonl")
        size = os.path.getsize(source) / 1e6
        print(f"{size:.0f} MB of requests: status {status}, {seconds:.0f} s, peak memory {peak:.0f} MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["kills", "memory"])
    parser.add_argument("--octant", default="target/release/octant")
    parser.add_argument("--lines", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--megabytes", type=float, default=1000)
    args, args.flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        {"kills": kills, "memory": memory}[args.what](args, Path(folder))


if __name__ == "__main__":
    main()
