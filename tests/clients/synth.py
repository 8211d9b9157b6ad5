"""Tests `octant synth` with the two demo models: the recipe `deploy/synth_demo.toml` at toy size runs once in
one go, and once with a kill -9 within each stage that asks a model. The data sets are loaded with `datasets`
and checked with TRL's functions, and the report is opened in a headless Chromium.

    synth.py OCTANT_BINARY MODEL_DIRECTORY REWARD_MODEL_DIRECTORY [FOLDER]

FOLDER, which must not exist, then has the files of both runs and screenshots of the report. If Chromium is
missing, the report is not opened, or the test fails if OCTANT_REQUIRE_PROGRAMS is 1.
OCTANT_SKIP_BROWSER=1 leaves the browser out.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path

import browser
from browser import Browser
from harness import run_tests

ROOT = Path(__file__).resolve().parents[2]
# The stages that ask a model.
ASKING = ["topics", "subtopics", "keywords", "prompts", "refined", "dialogues", "responses", "rewards"]
CONCURRENCY = 2
# The longest sequence of a server, and the most tokens of an answer of each responder. The long prompt leaves
# room for an answer of the first responder, and none for one of the second.
MAX_MODEL_LEN = 320
ANSWER_TOKENS = (12, 64)
LONG_PROMPT = "Say in one word what all of these things are: " + ", ".join(
    f"{size} {colour} {thing}"
    for size in ["a small", "a large"]
    for colour in ["red", "green", "blue", "white", "black", "brown"]
    for thing in ["cup", "plate", "spoon", "bowl"]
)
PROMPTS = [LONG_PROMPT, LONG_PROMPT]
LIST_TOKENS = 64
# A list that does not fit in LIST_TOKENS.
TOO_LONG_LIST = 100
# Time after which a run that does not end has failed, in seconds.
PATIENCE = 3600


def toml(value) -> str:
    """A value as TOML on one line."""
    match value:
        case dict():
            return "{ " + ", ".join(f"{key} = {toml(of)}" for key, of in value.items()) + " }"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case bool() | str():
            return json.dumps(value)
        case _:
            return repr(value)


def toy_recipe(model: str, judge: str) -> str:
    """The demo recipe with few and short texts, and with a short list, ties and a refused request."""
    recipe = tomllib.loads((ROOT / "deploy/synth_demo.toml").read_text())
    roles = recipe["roles"]
    writer, user, first, second = roles["prompt_writer"], roles["user"], *roles["responders"]
    for role in [writer, user, first, second, roles["judge"]]:
        role["model"] = judge if role is roles["judge"] else model
        role["concurrency"] = CONCURRENCY
        # The texts, and so the rejects and ties that are asserted, depend on the bits of the products.
        limits = ["--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "4"]
        role["serve_args"] = [*limits, "--cpu-instructions", "avx2"]
    writer["sampling"]["max_tokens"] = LIST_TOKENS
    user["sampling"]["max_tokens"] = 16
    # Two greedy answers to a prompt are the same, and so are their scores.
    first["sampling"] |= {"temperature": 0, "max_tokens": ANSWER_TOKENS[0]}
    second["sampling"] |= {"max_tokens": ANSWER_TOKENS[1], "min_tokens": 4, "stop": [" "]}
    recipe["topics"] = {"generate": 1, "given": recipe["topics"]["given"][:1], "subtopics": 1}
    recipe["open_questions"]["per_topic"] = 1
    recipe["mathematics"] |= {"generate": 1, "per_keyword": TOO_LONG_LIST}
    recipe["given"] = {"file": "prompts.jsonl"}
    # One prompt of each kind: an open question, a problem of mathematics and the long prompt.
    recipe["select"]["most"] = 3
    recipe["dialogues"]["most"] = 2
    recipe["reward"]["threshold"] = 1.5
    recipe["pairs"]["min_margin"] = 0.0
    return "".join(f"{key} = {toml(value)}\n" for key, value in recipe.items())


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Run:
    """The files of a run, and its processes."""

    def __init__(self, binary: str, recipe: Path, folder: Path) -> None:
        self.command = [binary, "synth", str(recipe), "--out", str(folder)]
        self.folder = folder
        self.said = ""

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)

    def finish(self) -> None:
        process = self.start()
        self.said = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, f"status {process.returncode}"

    def kill_within(self, stage: str, lines: int) -> None:
        """Kills the run as soon as the journal of a stage has this number of lines."""
        process = self.start()
        journal = self.folder / f"{stage}.journal.jsonl"
        try:
            while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
                assert process.poll() is None, f"{stage}: the run ended with status {process.returncode}"
                time.sleep(0.002)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL, f"status {process.returncode}"
        assert not (self.folder / f"{stage}.summary.json").exists(), f"{stage} was complete before the kill"

    def lines(self, stem: str) -> list[dict]:
        return records(self.folder / f"{stem}.jsonl")

    def summaries(self) -> dict[str, dict]:
        """The summary of each stage by its stem, in their order."""
        paths = sorted(self.folder.glob("*.summary.json"))
        return {path.name.removesuffix(".summary.json"): json.loads(path.read_text()) for path in paths}

    def data(self) -> dict[str, bytes]:
        """The files of records, rejects, short lists and data sets."""
        paths = sorted([*self.folder.glob("*.jsonl"), *self.folder.glob("exports/*")])
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    def servers(self) -> list[Path]:
        """The logs of the servers, in the order in which these started."""
        return sorted(self.folder.glob("server-*.log"), key=lambda path: started(path))


def times(log: Path) -> list[str]:
    return re.findall(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", log.read_text())


def started(log: Path) -> str:
    return times(log)[0]


class Loop:
    """Both runs of the toy recipe."""

    def __init__(self, binary: str, model: str, judge: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.shots = folder / "screenshots"
        recipe = folder / "recipe.toml"
        recipe.write_text(toy_recipe(str(Path(model).resolve()), str(Path(judge).resolve())))
        lines = [json.dumps({"prompt": text}) + "\n" for text in PROMPTS]
        (folder / "prompts.jsonl").write_text("".join(lines))
        self.whole = Run(binary, recipe, folder / "whole")
        self.killed = Run(binary, recipe, folder / "killed")


def test_a_run_in_one_go(loop: Loop) -> None:
    loop.whole.finish()
    summaries = loop.whole.summaries()
    assert [stem[3:] for stem, summary in summaries.items() if summary["requests"]] == ASKING, summaries
    assert (loop.whole.folder / "report.html").exists()


def test_a_run_that_is_killed_within_each_stage_gives_the_same_bytes(loop: Loop) -> None:
    for stem, summary in loop.whole.summaries().items():
        if summary["requests"]:
            # The journal's first line is its header. A stage with more items than run side by side is killed
            # when the first is finished.
            loop.killed.kill_within(stem, 2 if summary["taken"] > CONCURRENCY else 1)
    loop.killed.finish()
    whole, killed = loop.whole.data(), loop.killed.data()
    assert list(whole) == list(killed), list(killed)
    for name, data in whole.items():
        assert killed[name] == data, f"{name} differs after kills"


def test_each_id_is_there_once(loop: Loop) -> None:
    for stem, summary in loop.killed.summaries().items():
        found = Counter(record["id"] for record in loop.killed.lines(stem))
        assert found and max(found.values()) == 1, (stem, found.most_common(1))
        assert sum(found.values()) == summary["made"], stem
        for record in loop.killed.lines(stem):
            parent = record.get("parent")
            assert parent is None or ":" in parent or record["id"].startswith(parent), record


def test_the_writer_has_stopped_before_the_judge_starts(loop: Loop) -> None:
    writer, judge = loop.whole.servers()
    assert times(writer)[-1] < started(judge), (writer, judge)
    for log in [*loop.whole.servers(), *loop.killed.servers()]:
        port = int(log.stem.removeprefix("server-"))
        deadline = time.monotonic() + PATIENCE
        while listens(port):
            assert time.monotonic() < deadline, f"a server still listens on port {port}"
            time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_rejects_have_their_reason_and_raw_text(loop: Loop) -> None:
    reasons = set()
    for stem, summary in loop.whole.summaries().items():
        rejects = loop.whole.lines(f"{stem}.rejects")
        assert Counter(reject["reason"] for reject in rejects) == summary["rejects"], stem
        for reject in rejects:
            reasons.add(reject["reason"])
            # A server that refuses a request writes no text.
            is_refused = reject["reason"] == "refused by the server"
            assert reject.get("detail") if is_refused else reject.get("raw"), reject
    expected = {"duplicate", "more than select.most", "refused by the server", "below the threshold"}
    assert expected | {"the scores are equal"} <= reasons, reasons


def test_short_lists_are_used_and_said(loop: Loop) -> None:
    run = loop.whole
    prompts = Counter(prompt["parent"] for prompt in run.lines("04-prompts"))
    short = [each for each in run.lines("04-prompts.short") if each["wanted"] == TOO_LONG_LIST]
    assert len(short) == 2, short
    for each in short:
        parent = each["id"].removesuffix(".q")
        assert prompts[parent] == each["made"] < TOO_LONG_LIST and each["raw"], each
    assert max(each["made"] for each in short) > 0, short
    missing = sum(each["wanted"] - each["made"] for each in run.lines("04-prompts.short"))
    assert f"lists were {missing} short" in run.said, run.said
    page = (run.folder / "report.html").read_text()
    assert "<h2>Short lists</h2>" in page and "Underfilled:" in page


def test_equal_scores_make_no_pair(loop: Loop) -> None:
    run = loop.whole
    scores = {reward["id"]: reward["score"] for reward in run.lines("09-rewards")}
    pairs = {pair["parent"]: pair for pair in run.lines("11-pairs")}
    rejects = {reject["id"]: reject["reason"] for reject in run.lines("11-pairs.rejects")}
    prompts, ties = {}, []
    for response in run.lines("08-responses"):
        prompts.setdefault(response["parent"], []).append(response)
    for parent, responses in prompts.items():
        found = [scores[response["id"]] for response in responses]
        if min(found) < max(found):
            pair = pairs[parent]
            expected = (max(found), min(found))
            assert (pair["chosen_score"], pair["rejected_score"]) == expected, pair
        else:
            ties.append(parent)
            assert parent not in pairs and rejects[f"{parent}.p"] == "the scores are equal", parent
    # The second responder has no room for an answer to the long prompt, and the first is greedy.
    assert "g0" in ties and len(prompts["g0"]) == 2 and pairs, (ties, list(pairs))
    table, filtered = run.said.index("at or above"), run.said.index("filtered: ")
    assert table < filtered, "the scores are not shown before the threshold drops some"


def test_the_data_sets_load_with_the_columns_of_their_trainers(loop: Loop) -> None:
    script, tokenizer = ROOT / "scripts/check_exports.py", ["--tokenizer", sys.argv[2]]
    command = [sys.executable, str(script), str(loop.whole.folder / "exports"), "--filled", *tokenizer]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    print(done.stdout, end="")
    assert done.returncode == 0, done.stderr


def test_the_report_is_shown_in_a_browser(loop: Loop) -> None:
    if os.environ.get("OCTANT_SKIP_BROWSER") == "1":
        return
    if browser.program() is None:
        assert os.environ.get("OCTANT_REQUIRE_PROGRAMS") != "1", "chromium is not installed"
        return
    loop.shots.mkdir()
    tab = Browser()
    try:
        tab.open((loop.whole.folder / "report.html").as_uri())
        check_report(tab, loop.whole)
        for name, width in [("desktop", 1280), ("phone", 390)]:
            for theme in ["light", "dark"]:
                tab.size(width, 800)
                tab.theme(theme)
                assert tab.value("document.documentElement.scrollWidth <= window.innerWidth"), name
                contrast = tab.contrast()
                assert contrast["least"] >= 4.5, f"{theme} {name}: {contrast}"
                tab.size(width, tab.value("document.documentElement.scrollHeight"))
                tab.screenshot(loop.shots / f"{name}-{theme}.png")
        assert not tab.complaints(), tab.complaints()
    finally:
        tab.close()


def check_report(tab: Browser, run: Run) -> None:
    """Headings, rows and bars of the page are those of the files."""
    headings = tab.value("[...document.querySelectorAll('h2')].map((heading) => heading.textContent)")
    expected = ["Stages", "Scores", "Data sets", "Samples"]
    assert headings == [*expected, "Rejects by reason", "Rejected items", "Short lists"], headings
    stages = tab.value("[...document.querySelector('table').rows].map((row) => row.cells[0].textContent)")
    assert stages == ["stage", *(stem[3:] for stem in run.summaries())], stages
    rewards = run.lines("09-rewards")
    names = ["score", *sorted(rewards[0]["turns"][-1])]
    shown = tab.value("[...document.querySelectorAll('figure h3')].map((name) => name.textContent)")
    assert shown == names, shown
    # The bars of each histogram have a visible size, and their counts add up to the number of rewards.
    counts = tab.value("""[...document.querySelectorAll('figure svg')].map((svg) =>
      [...svg.querySelectorAll('rect.bar')].map((bar) => {
        const count = Number(bar.querySelector('title').textContent.split(': ')[1]);
        const box = bar.getBoundingClientRect();
        return box.width > 0 && (box.height > 0) === (count > 0) ? count : NaN;
      }).reduce((sum, count) => sum + count, 0))""")
    assert counts == [len(rewards)] * len(names), counts
    assert tab.value("document.querySelectorAll('path.threshold').length") == 1
    tab.value("document.querySelectorAll('details').forEach((item) => item.querySelector('summary').click())")
    assert tab.value("[...document.querySelectorAll('details pre')].every((text) => text.checkVisibility())")
    shown = tab.value("document.body.innerText")
    assert LONG_PROMPT in shown, "the refused prompt is not in the samples"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="octant-synth-") as parent:
        folder = Path(sys.argv[4]) if len(sys.argv) > 4 else Path(parent, "loop")
        loop = Loop(*sys.argv[1:4], folder)
        tests = [value for key, value in list(globals().items()) if key.startswith("test_")]
        failed = run_tests(tests, loop)
    sys.exit(1 if failed else 0)
