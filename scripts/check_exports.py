#!/usr/bin/env python3
"""Loads every data set that `octant synth` exported with `datasets`, and checks columns and types.

    pip install datasets
    python scripts/check_exports.py RUN/exports

The columns are those of TRL's documentation ("Dataset formats and types"), of NeMo-Aligner's user guide and
of NeMo-RL's guides. If `trl` is installed, its own functions classify the conversational data sets too. Exits
with status 1 if a file is missing from the folder, a column is missing or too many, or a value has the wrong
type.
"""

import argparse
import math
import pathlib
import sys
import tempfile

import datasets

datasets.disable_progress_bars()

ROLES = ("system", "user", "assistant")
ATTRIBUTES = {
    "quality", "toxicity", "humor", "creativity", "helpfulness",
    "correctness", "coherence", "complexity", "verbosity",
}


def is_messages(value):
    """A list of messages with a role and a text, and nothing else."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(set(turn) == {"role", "content"} for turn in value)
        and all(turn["role"] in ROLES and isinstance(turn["content"], str) for turn in value)
    )


def is_prompt(value):
    return is_messages(value) and value[-1]["role"] == "user"


def is_conversation(value):
    return is_messages(value) and value[-1]["role"] == "assistant"


def is_answer(value):
    return is_conversation(value) and len(value) == 1


def is_text(value):
    return isinstance(value, str)


def is_number(value):
    return isinstance(value, float) and math.isfinite(value)


def is_completions(value):
    ranks = [completion["rank"] for completion in value]
    return ranks == [0, 1] and all(is_answer(completion["completion"]) for completion in value)


def is_label(value):
    """No label, or SteerLM's: `helpfulness:4,correctness:3`."""
    if value is None:
        return True
    parts = [part.split(":") for part in value.split(",")]
    return all(name in ATTRIBUTES and number in list("01234") for name, number in parts)


def is_turns(value):
    """Turns of NeMo-Aligner's chat data set, user first."""
    sides = ["User", "Assistant"] * len(value)
    return len(value) > 0 and all(
        turn["from"] == side and isinstance(turn["value"], str) and is_label(turn["label"])
        for turn, side in zip(value, sides)
    )


CHAT = {"system": is_text, "mask": lambda value: value == "User", "conversations": is_turns}

FORMATS = {
    "trl_sft.jsonl": {"messages": is_conversation},
    "trl_preference.jsonl": {"prompt": is_prompt, "chosen": is_answer, "rejected": is_answer},
    "trl_preference_implicit.jsonl": {
        "chosen": is_conversation,
        "rejected": is_conversation,
        "margin": lambda value: is_number(value) and value >= 0,
    },
    "trl_kto.jsonl": {
        "prompt": is_prompt,
        "completion": is_answer,
        "label": lambda value: isinstance(value, bool),
    },
    "nemo_aligner_sft.jsonl": {**CHAT, "type": lambda value: value is None},
    "nemo_aligner_steerlm.jsonl": {**CHAT, "type": lambda value: value == "VALUE_TO_TEXT"},
    "nemo_aligner_dpo.jsonl": {
        "prompt": lambda value: value.startswith("<extra_id_0>") and value.endswith("Assistant\n"),
        "chosen_response": lambda value: value.endswith("\n<extra_id_1>"),
        "rejected_response": lambda value: value.endswith("\n<extra_id_1>"),
        "chosen_reward": is_number,
        "rejected_reward": is_number,
    },
    "nemo_rl_preference.jsonl": {"context": is_prompt, "completions": is_completions},
    "nemo_rl_binary_preference.jsonl": {"prompt": is_prompt, "chosen": is_text, "rejected": is_text},
}


def check_trl(name, row):
    """Faults that TRL's own functions find in a row."""
    try:
        from trl import is_conversational
    except ImportError:
        return []
    return [] if is_conversational(row) else [f"{name}: TRL does not find the first row conversational"]


def check(path, cache):
    """The number of rows of a file, and its faults."""
    name = path.name
    expected = FORMATS[name]
    if path.stat().st_size == 0:
        return 0, []
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
    faults = []
    if set(rows.column_names) != set(expected):
        faults.append(f"{name}: expected columns {sorted(expected)}; got {sorted(rows.column_names)}")
        return len(rows), faults
    for number, row in enumerate(rows, 1):
        for column, is_right in expected.items():
            if not is_right(row[column]):
                faults.append(f"{name}:{number}: {column}: unexpected value {row[column]!r}")
    if name.startswith("trl_"):
        faults += check_trl(name, rows[0])
    return len(rows), faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="the folder `exports` of a run")
    parser.add_argument("--only", nargs="*", choices=sorted(FORMATS), help="the files that must be there")
    arguments = parser.parse_args()
    faults = []
    with tempfile.TemporaryDirectory() as cache:
        for name in arguments.only or FORMATS:
            path = arguments.folder / name
            if not path.exists():
                faults.append(f"{name}: missing from {arguments.folder}")
                continue
            rows, found = check(path, cache)
            faults += found
            print(f"{name:<36} {rows:>7} rows  {'wrong' if found else 'right'}")
    for fault in faults[:50]:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
