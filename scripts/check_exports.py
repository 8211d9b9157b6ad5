#!/usr/bin/env python3
"""Loads every data set that `octant synth` exported with `datasets`, and checks columns and types.

    pip install datasets
    python scripts/check_exports.py RUN/exports

The columns are those of TRL's documentation ("Dataset formats and types"), of NeMo-Aligner's user guide and
of NeMo-RL's guides. Exits with status 1 if a file is missing from the folder, a column is missing or too
many, or a value has the wrong type.

With `--tokenizer DIRECTORY`, TRL's own functions read its data sets too, as its trainers do: each row is
conversational and the tokenizer's chat template takes it, the implicit prompts are the explicit ones, and the
pairs taken apart are the data set of KTO. This needs `trl` and `transformers`, and no PyTorch.
"""

import argparse
import json
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


def check_trl(tables, tokenizer):
    """Faults that TRL's own functions find in its data sets."""
    import trl
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    faults = []
    for name, rows in tables.items():
        for number, row in enumerate(rows, 1):
            if not trl.is_conversational(row):
                faults.append(f"{name}:{number}: TRL does not find the row conversational")
                continue
            try:
                texts = trl.apply_chat_template(row, tokenizer)
            except (KeyError, ValueError, TypeError) as error:
                faults.append(f"{name}:{number}: TRL cannot apply the chat template: {error!r}")
                continue
            if not all(text for text in texts.values() if isinstance(text, str)):
                faults.append(f"{name}:{number}: TRL makes an empty text: {texts}")
    explicit, implicit = tables.get("trl_preference.jsonl"), tables.get("trl_preference_implicit.jsonl")
    if explicit and implicit:
        columns = ["prompt", "chosen", "rejected"]
        found = implicit.map(trl.extract_prompt).select_columns(columns).to_list()
        if found != explicit.select_columns(columns).to_list():
            faults.append("trl_preference_implicit.jsonl: TRL finds other rows than trl_preference.jsonl has")
    if explicit and (kto := tables.get("trl_kto.jsonl")):
        unpaired = trl.unpair_preference_dataset(explicit).to_list()
        if sorted(map(repr_of, unpaired)) != sorted(map(repr_of, kto)):
            faults.append("trl_kto.jsonl: other rows than those of trl_preference.jsonl taken apart")
    return faults


def repr_of(row):
    """A text by which rows can be compared, whatever the order of their columns."""
    return json.dumps(row, sort_keys=True)


def load(path, cache):
    """The rows of a file; `None` if it is empty, which `datasets` cannot load."""
    if path.stat().st_size == 0:
        return None
    return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)


def check(name, rows):
    """Faults of the columns and their values."""
    expected = FORMATS[name]
    if set(rows.column_names) != set(expected):
        return [f"{name}: expected columns {sorted(expected)}; got {sorted(rows.column_names)}"]
    return [
        f"{name}:{number}: {column}: unexpected value {row[column]!r}"
        for number, row in enumerate(rows, 1)
        for column, is_right in expected.items()
        if not is_right(row[column])
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="the folder `exports` of a run")
    parser.add_argument("--only", nargs="*", choices=sorted(FORMATS), help="the files that must be there")
    parser.add_argument("--filled", action="store_true", help="a file without rows is an error")
    parser.add_argument("--tokenizer", help="also call TRL's functions, with this model's tokenizer")
    arguments = parser.parse_args()
    faults, tables = [], {}
    with tempfile.TemporaryDirectory() as cache:
        for name in arguments.only or FORMATS:
            path = arguments.folder / name
            if not path.exists():
                faults.append(f"{name}: missing from {arguments.folder}")
                continue
            rows = load(path, cache)
            found = check(name, rows) if rows else []
            if rows:
                tables[name] = rows
            elif arguments.filled:
                found = [f"{name}: expected rows; got none"]
            faults += found
            print(f"{name:<36} {len(rows or []):>7} rows  {'wrong' if found else 'right'}")
        if arguments.tokenizer and not faults:
            of_trl = {name: rows for name, rows in tables.items() if name.startswith("trl_")}
            faults = check_trl(of_trl, arguments.tokenizer)
            print(f"TRL's functions on {len(of_trl)} data sets: {'wrong' if faults else 'right'}")
    for fault in faults[:50]:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
