#!/usr/bin/env python3
r"""Compares `octant eval rewardbench` with the package rewardbench on made scores.

    pip install numpy pandas datasets
    pip download --no-deps rewardbench==0.1.4 && unzip rewardbench-0.1.4-py3-none-any.whl -d rewardbench
    python scripts/compare_rewardbench.py --octant target/release/octant --package rewardbench

Makes files of RewardBench's two versions, some of them without all subsets, serves scores of few different
values so that many are equal, and computes the results again with the functions of the package:
`calculate_scores_per_section` and `get_average_over_rewardbench` for version 1, `reroll_and_score_dataset`
and `process_single_model` for version 2. They are read from its source, because its imports need PyTorch and
FastChat. Exits with 1 if a figure differs by more than 1e-9. `--url` takes the scores of a real reward model
instead, for one file of each version.
"""

import argparse
import ast
import hashlib
import http.server
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile
import threading

import datasets
import numpy
import pandas

PRIOR_SETS = ["anthropic_helpful", "anthropic_hhh", "shp", "summarize"]
VERSION_2 = ["Factuality", "Focus", "Math", "Precise IF", "Safety"]
TOLERANCE = 1e-9


def functions(path, names, more):
    """Functions of a Python file, without the rest of the file."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    for node in tree.body:
        node.returns = None
        for argument in node.args.args:
            argument.annotation = None
    space = {"np": numpy, "pd": pandas, "math": math, "Dataset": datasets.Dataset, **more}
    exec(compile(tree, str(path), "exec"), space)
    return space


def reference(package):
    """The functions and tables of the package."""
    constants = {}
    exec((package / "rewardbench/constants.py").read_text(), constants)
    names = [
        "calculate_scores_per_section", "reroll_and_score_dataset", "sample_stats", "process_single_model",
    ]
    space = functions(package / "rewardbench/utils.py", names, {})
    tables = {name: constants[name] for name in ["EXAMPLE_COUNTS", "SUBSET_MAPPING"]}
    average = functions(
        package / "analysis/get_benchmark_results.py", ["get_average_over_rewardbench"], tables)
    return {**space, **average, **tables}


def score(values, answer):
    """The score of an answer: one of `values` numbers, by the hash of its text."""
    return int.from_bytes(hashlib.sha256(answer.encode()).digest()[:4]) % values / 4 - 1


class Scores(http.server.BaseHTTPRequestHandler):
    """`/v1/models` and `/v1/reward`."""

    protocol_version = "HTTP/1.1"
    values = 6

    def reply(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.reply({"data": [{"id": "made"}]})

    def do_POST(self):
        answers = json.loads(self.rfile.read(int(self.headers["content-length"])))["answers"]
        scores = [score(self.values, answer) for answer in answers]
        self.reply({"data": [{"index": index, "score": value} for index, value in enumerate(scores)]})

    def log_message(self, *_):
        pass


def ours(octant, url, rows):
    """Octant's figures, and the score of each answer that it has read."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = pathlib.Path(folder, "rows.jsonl"), pathlib.Path(folder, "out.json")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [octant, "eval", "rewardbench", str(file), "--url", url, "--output", str(out)]
        subprocess.run([*command, "--log-level", "warn"], check=True, stdout=subprocess.DEVNULL)
        mine = json.loads(out.read_text())
    read = {}
    for row, scored in zip(rows, mine["rows"], strict=True):
        for key in ["chosen", "rejected"]:
            answers = [row[key]] if isinstance(row[key], str) else row[key]
            read.update(zip(answers, scored[key], strict=True))
    return mine, read


def version_1(rng, subsets):
    """Rows of version 1."""
    rows = []
    for subset in subsets:
        for _ in range(rng.randint(1, 12)):
            chosen, rejected = (f"answer {rng.random()}" for _ in range(2))
            rows.append({"prompt": "p", "chosen": chosen, "rejected": rejected, "subset": subset, "id": 1})
    rng.shuffle(rows)
    return rows


def compare_1(theirs, rows, mine, scores):
    """Names and pairs of figures of version 1."""
    accuracy = {}
    for subset in {row["subset"] for row in rows}:
        right = [scores[row["chosen"]] > scores[row["rejected"]] for row in rows if row["subset"] == subset]
        accuracy[subset] = sum(right) / len(right)
    pairs = [(f"subset {row['subset']}", accuracy[row["subset"]], row["accuracy"]) for row in mine["subsets"]]
    mapping = theirs["SUBSET_MAPPING"]
    sections = theirs["calculate_scores_per_section"](theirs["EXAMPLE_COUNTS"], mapping, accuracy)
    # A section without rows is 0 there and absent here.
    there = {name: value for name, value in sections.items() if any(s in accuracy for s in mapping[name])}
    pairs += [(f"section {name}", value, mine["sections"].get(name)) for name, value in there.items()]
    if len(there) == len(mapping) and any(name in accuracy for name in PRIOR_SETS):
        frame = pandas.DataFrame([{"model": "made", "model_type": "x", **accuracy}])
        prior = pandas.DataFrame([{"model": "made", **{n: accuracy.get(n, math.nan) for n in PRIOR_SETS}}])
        average = theirs["get_average_over_rewardbench"](frame, prior)["average"][0]
        pairs.append(("mean with prior sets", average, mine["mean_with_prior_sets"]))
        pairs.append(("mean", numpy.mean(list(there.values())), mine["mean"]))
    return pairs


def version_2(rng, ties):
    """Rows of version 2: best of four, and questions with ties in one or both forms."""
    rows = []
    for subset in VERSION_2[: rng.randint(1, 5)]:
        for index in range(rng.randint(1, 12)):
            answers = [f"answer {rng.random()}" for _ in range(4)]
            row = {"id": str(index), "prompt": "p", "subset": subset}
            rows.append({**row, "chosen": answers[:1], "rejected": answers[1:]})
    for number in range(ties):
        for form, most in [("ref", 1), ("tied", 5)]:
            if rng.random() < 0.1 and number:
                continue
            # Without any question that has several right answers in both forms, the reference has no score.
            least = 2 if form == "tied" and not number else 1
            chosen = [f"right {rng.random()}" for _ in range(rng.randint(least, most))]
            rejected = [f"wrong {rng.random()}" for _ in range(rng.randint(1, 3))]
            row = {"id": f"{form}:{number}", "prompt": "p", "subset": "Ties"}
            rows.append({**row, "chosen": chosen, "rejected": rejected})
    return rows


def compare_2(theirs, rows, mine, scores):
    """Names and pairs of figures of version 2."""
    pairs = []
    for subset in sorted({row["subset"] for row in rows}):
        of_subset = [row for row in rows if row["subset"] == subset]
        answers = [row["chosen"] + row["rejected"] for row in of_subset]
        flat = [
            {"id": row["id"], "text": text, "scores": scores[text]}
            for row, texts in zip(of_subset, answers, strict=True) for text in texts
        ]
        counts = [len(texts) for texts in answers]
        table = theirs["reroll_and_score_dataset"](datasets.Dataset.from_list(flat), counts)
        if subset == "Ties":
            correct = [len(row["chosen"]) for row in of_subset]
            _, expected = theirs["process_single_model"](table.add_column("num_correct", correct))
        else:
            expected = sum(table["results"]) / len(table["results"])
        pairs.append((f"subset {subset}", expected, mine["subsets"][subset]["score"]))
    mean = numpy.mean([expected for _, expected, _ in pairs])
    return [*pairs, ("mean", mean, mine["mean"])]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--octant", required=True, help="the binary")
    parser.add_argument("--package", required=True, type=pathlib.Path, help="the unpacked wheel")
    parser.add_argument("--files", type=int, default=60, help="files of each version")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a server with /v1/reward")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    theirs, rng = reference(args.package), random.Random(args.seed)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scores)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    known = [subset for subsets in theirs["SUBSET_MAPPING"].values() for subset in subsets]
    counts, differ, rows_of = [0, 0], 0, [0, 0]
    url = args.url or f"http://127.0.0.1:{server.server_port}"
    files = 1 if args.url else args.files
    for number in range(files):
        Scores.values = rng.choice([2, 6, 1000])
        some = [subset for subset in known + PRIOR_SETS if number % 3 == 0 or rng.random() < 0.7]
        first, second = version_1(rng, some), version_2(rng, rng.randint(1, 12))
        for index, (rows, compare) in enumerate([(first, compare_1), (second, compare_2)]):
            rows_of[index] += len(rows)
            mine, scores = ours(args.octant, url, rows)
            wrong = [text for text, read in scores.items() if read != score(Scores.values, text)]
            assert args.url or not wrong, f"scores of other answers: {wrong[:3]}"
            for name, expected, got in compare(theirs, rows, mine, scores):
                counts[index] += 1
                if got is None or not abs(expected - got) <= TOLERANCE:
                    differ += 1
                    print(f"version {index + 1}, file {number}, {name}: {expected} there, {got} here")
    for index in range(2):
        print(f"version {index + 1}: {counts[index]} figures of {files} files, {rows_of[index]} rows")
    print(f"{differ} figures differ by more than {TOLERANCE}")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
