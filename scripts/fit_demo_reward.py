#!/usr/bin/env python3
"""Fits the head of the demo reward model and measures it. Needs numpy; the models run in `octant serve`.

    octant serve demo/smollm2-135m-instruct &
    python3 scripts/fit_demo_reward.py answers http://127.0.0.1:8000 ANSWERS.jsonl
    python3 scripts/fit_demo_reward.py probe demo/reward-probe
    octant serve demo/reward-probe --quantization none &
    python3 scripts/fit_demo_reward.py fit http://127.0.0.1:8000 ANSWERS.jsonl
    python3 scripts/demo_model.py --reward
    octant serve demo/smollm2-135m-reward &
    python3 scripts/fit_demo_reward.py measure ANSWERS.jsonl http://127.0.0.1:8000 [URL ...]

`answers` asks the demo model the prompts of scripts/demo_reward_texts.py; the head in the repository was
fitted to scripts/demo_reward_answers.jsonl. `probe` writes a reward model whose head is the identity: the
values of its head are the hidden state after the final norm. `fit` reads the hidden state at the end of
each answer and of its spoiled versions from the probe, fits the five values by ridge regression without a
constant, and writes scripts/demo_reward_head.safetensors. `measure` prints the share of held-out pairs (an
answer, a spoiled version of it) in which the answer has the higher score; with several servers, also the
share of pairs that each of them orders as the first does.

The demo reward model is a demonstration: it has seen nothing but these answers and can tell them from their
spoiled versions. Its scores say nothing else about the quality of a text.
"""

import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import demo_model
import demo_reward_texts as texts

CONCURRENCY = 16
# Sampling of the answers. An answer that reaches the limit is not used: it is cut already.
SAMPLING = {"temperature": 0.6, "top_p": 0.9, "max_tokens": 100}
# Parts of the training topics, each of which is left out once to choose the strength of the regularisation.
FOLDS = 5


def main() -> None:
    match sys.argv[1:]:
        case ["answers", url, out]:
            answers(url, Path(out))
        case ["probe", directory]:
            probe(Path(directory).resolve())
        case ["fit", url, source]:
            fit(url, Path(source))
        case ["measure", source, *urls] if urls:
            measure(Path(source), urls)
        case _:
            sys.exit(__doc__)


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=3600) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.code}: {error.read().decode()}")


def concurrently(call, items: list, what: str):
    """Yields the results of concurrent calls as they come, and prints how many there are."""
    pool = ThreadPoolExecutor(CONCURRENCY)
    try:
        for done, future in enumerate(as_completed([pool.submit(call, item) for item in items]), 1):
            yield future.result()
            if done % 20 == 0 or done == len(items):
                print(f"{done} of {len(items)} {what}", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)


def answers(url: str, out: Path) -> None:
    """Asks the demo model every prompt; a second run asks those that the file lacks."""
    known = {row["prompt"] for row in read(out)} if out.exists() else set()
    todo = [(seed, row) for seed, row in enumerate(texts.prompts()) if row["prompt"] not in known]

    def ask(item: tuple) -> dict:
        seed, row = item
        messages = [{"role": "user", "content": row["prompt"]}]
        reply = post(f"{url}/v1/chat/completions", {"messages": messages, "seed": seed, **SAMPLING})
        choice = reply["choices"][0]
        return {**row, "answer": choice["message"]["content"].strip(), "finish": choice["finish_reason"]}

    with open(out, "a", encoding="utf-8") as sink:
        for row in concurrently(ask, todo, "answers"):
            sink.write(json.dumps(row, ensure_ascii=False) + "\n")
            sink.flush()


def read(path: Path) -> list[dict]:
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def whole(path: Path) -> list[dict]:
    """Reads the answers that ended by themselves and are long enough, with their spoiled versions."""
    rows = {row["prompt"]: row for row in read(path) if row["finish"] == "stop"}
    rows = [rows[given["prompt"]] for given in texts.prompts() if given["prompt"] in rows]
    return texts.with_spoiled([row for row in rows if len(row["answer"].split()) >= texts.FEWEST_WORDS])


def scores(url: str, rows: list[dict], names: list[str], **fields) -> list[dict]:
    """Returns the score and the values that a server gives the versions of each row's answer, by kind."""

    def score(item: tuple) -> tuple:
        number, row = item
        prompt = [{"role": "user", "content": row["prompt"]}]
        given = [version["text"] for version in row["versions"].values()]
        reply = post(f"{url}/v1/reward", {"prompt": prompt, "answers": given, **fields})
        if reply["attributes"] != names:
            sys.exit(f"{url}: expected a model with the values {names}, got {reply['attributes']}")
        found = ((one["score"], [one["values"][name] for name in names]) for one in reply["data"])
        return number, dict(zip(row["versions"], found, strict=True))

    found = dict(concurrently(score, list(enumerate(rows)), "prompts"))
    return [found[number] for number in range(len(rows))]


def probe(directory: Path) -> None:
    """Writes the reward model whose values are the hidden state after the final norm."""
    import numpy as np

    chat = demo_model.CHAT.resolve()
    size = json.loads((chat / "config.json").read_text())["hidden_size"]
    demo_model.reward_model(chat, directory, head_file(np.eye(size)), probe_names(size))


def probe_names(size: int) -> list[str]:
    return [f"h{i}" for i in range(size)]


def head_file(weight) -> bytes:
    """Returns a safetensors file with the weight of a head in BF16."""
    import numpy as np

    data = demo_model.bf16(weight.astype(np.float32))
    return demo_model.safetensors_bytes({"score.weight": (list(weight.shape), data)})


def fit(url: str, source: Path) -> None:
    import numpy as np

    size = json.loads((demo_model.CHAT / "config.json").read_text())["hidden_size"]
    rows = [row for row in whole(source) if not row["held_out"]]
    # The probe's score is of no use here, but a head without published weights has to be given one.
    states = scores(url, rows, probe_names(size), weights={"h0": 1})
    x = np.array([state for row in states for _, state in row.values()])
    y = np.array([version["target"] for row in rows for version in row["versions"].values()])
    topics = sorted({row["topic"] for row in rows})
    folds = np.array([topics.index(row["topic"]) % FOLDS for row in rows])
    weight = head(x, y, folds)
    demo_model.HEAD.write_bytes(head_file(weight))
    print(f"fitted to {len(rows)} prompts with {len(x) // len(rows)} versions each")


def head(x, y, folds):
    """Fits the head with the strength that ranks most pairs right in cross-validation."""
    import numpy as np

    per_row = len(x) // len(folds)
    each = folds.repeat(per_row)
    best = (-1.0, 0.0)
    for strength in 10.0 ** np.arange(-1, 4.5, 0.5):
        right = []
        for fold in range(FOLDS):
            weight = ridge(x[each != fold], y[each != fold], strength, per_row)
            scores = (x[each == fold] @ weight.T @ texts.WEIGHTS).reshape(-1, per_row)
            right += list(scores[:, :1] > scores[:, 1:])
        share = np.mean(right)
        print(f"strength {strength:8.1f}: {share:.1%} of left-out pairs ranked right")
        best = max(best, (share, strength))
    return ridge(x, y, best[1], per_row)


def ridge(x, y, strength: float, per_row: int):
    """Returns the weight [values, hidden] of ridge regression without a constant.

    The columns are scaled to a mean square of 1. A written answer weighs as much as all its spoiled versions.
    """
    import numpy as np

    scale = np.sqrt((x**2).mean(0))
    weighing = np.tile([per_row - 1.0] + [1.0] * (per_row - 1), len(x) // per_row)[:, None]
    scaled = x / scale
    gram = scaled.T @ (weighing * scaled) + strength * np.eye(x.shape[1])
    return (np.linalg.solve(gram, scaled.T @ (weighing * y)) / scale[:, None]).T


def measure(source: Path, urls: list[str]) -> None:
    rows = [row for row in whole(source) if row["held_out"]]
    first = None
    for url in urls:
        found = scores(url, rows, demo_model.ATTRIBUTES)
        # By kind, how far each written answer is above its spoiled version.
        margins = {kind: [row["written"][0] - row[kind][0] for row in found] for kind in texts.SPOILED}
        first = first or margins
        print(f"\n{url}: {len(rows)} held-out prompts\n")
        report(found, margins, first)


def report(found: list[dict], margins: dict, first: dict) -> None:
    """Prints a table by kind: pairs ranked right, pairs ordered as by the first server, and mean values."""
    columns = ["version", "ranked right", "order as first", "score", *demo_model.ATTRIBUTES]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for kind in ["written", *texts.SPOILED]:
        shares = shares_of(margins[kind], first[kind]) if kind in margins else ["", ""]
        given = [[score, *values] for score, values in (row[kind] for row in found)]
        means = [f"{sum(column) / len(column):.2f}" for column in zip(*given)]
        print(f"| {' | '.join([kind, *shares, *means])} |")
    shares = shares_of(sum(margins.values(), []), sum(first.values(), []))
    print(f"| {' | '.join(['all pairs', *shares])} |{' |' * (len(columns) - 3)}")


def shares_of(margins: list[float], first: list[float]) -> list[str]:
    right = sum(margin > 0 for margin in margins)
    same = sum((one > 0) == (two > 0) for one, two in zip(margins, first))
    return [f"{right / len(margins):.1%}", f"{same / len(margins):.1%}"]


if __name__ == "__main__":
    main()
