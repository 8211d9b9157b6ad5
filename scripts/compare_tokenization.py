#!/usr/bin/env python3
"""Compares the tokenization of random added tokens with that of `tokenizers` and `transformers`.

    pip install "transformers==5.*"
    python scripts/compare_tokenization.py                     makes tests/data/text/added_tokens.json
    python scripts/compare_tokenization.py --cases 3000 --seed 7     tries other cases, writes nothing

Each case is one of the fixture tokenizers with another normalizer and random added tokens: all
combinations of flags, contents that overlap, and texts made of their pieces. The expected ids are those of
`tokenizers`. In addition each case has a conversation, `{bos}text{eos}`: it is encoded by a tokenizer whose
BOS and EOS have names that no text contains, so what the text spells is encoded as text.

Cases under `files` are directories in which tokens stand in other files than tokenizer.json. Their ids, and
the text of all special tokens, are those of `transformers`.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import tempfile

from tokenizers import Tokenizer
from transformers import AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "text"
FIXTURES = ["byte_level", "sentencepiece", "sentencepiece_legacy"]
FLAGS = ["single_word", "lstrip", "rstrip", "normalized", "special"]
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
NORMALIZERS = [None, {"type": "Lowercase"}, {"type": "NFKC"}, STRIP]

CONTENTS = [
    "<ref>", "<a>", "a>b", "<a", "ab", "b", "<<a>>", "[X]", "x]", "A", "é", "<think>", "</think>", "  ",
    " \n", "b c", "aa", "aab", "<|x|>", "|x|", "_", "1", "é<a>", "Ａ", "ﬁ",
]
# The markers share no character with other contents.
MARKERS = [("{mq}", "~end~"), ("{MQ}", "{mq}{"), ("~~", "{user}")]
PIECES = ["a", "b", " ", "  ", "\n", "x", "<", ">", "|", "A", "é", "Ａ", "＜a＞", "ﬁ", "Hello"]
PIECES += [" world", "1", "_", "😀"]
# Names of markers that no text contains.
NAMES = ["\ue000\ue001", "\ue002\ue003"]


def base(name):
    return json.loads((DATA / name / "tokenizer.json").read_text(encoding="utf-8"))


def with_normalizer(file, normalizer):
    if normalizer is not None:
        before = file["normalizer"]
        parts = before["normalizers"] if before else []
        file["normalizer"] = {"type": "Sequence", "normalizers": [normalizer, *parts]}
    return file


def random_case(chance):
    fixture = chance.choice(FIXTURES)
    normalizer = chance.choice(NORMALIZERS)
    markers = chance.choice(MARKERS)
    contents = [*markers, *chance.sample(CONTENTS, chance.randint(1, 7))]
    first = max(base(fixture)["model"]["vocab"].values()) + 1
    tokens = []
    vocab = base(fixture)["model"]["vocab"]
    for content in contents:
        flags = {flag: chance.random() < 0.4 for flag in FLAGS}
        # The names that replace the markers are not parts of words.
        flags["single_word"] &= content not in markers
        if not content.strip():
            # `tokenizers` panics if the normalizer leaves nothing of a token; the server refuses such a file.
            flags["normalized"] = False
        id = vocab.get(content)
        if id is None:
            id, first = first, first + 1
        tokens.append({"id": id, "content": content, **flags})
    chance.shuffle(tokens)
    new = sorted(token["id"] for token in tokens if token["content"] not in vocab)
    for token in tokens:  # Ids follow the order of the list.
        if token["content"] not in vocab:
            token["id"] = new.pop(0)
    pieces = PIECES + contents * 2 + [piece for marker in markers for piece in (marker[:2], marker[2:])]
    texts = ["".join(chance.choice(pieces) for _ in range(chance.randint(1, 9))) for _ in range(4)]
    case = {"fixture": fixture, "normalizer": normalizer, "tokens": tokens}
    return {**case, "markers": markers, "texts": texts}


def tokenizer_of(case, rename=False):
    file = with_normalizer(base(case["fixture"]), case["normalizer"])
    names = dict(zip(case["markers"], NAMES)) if rename else {}
    file["added_tokens"] = [
        {**token, "content": names.get(token["content"], token["content"])} for token in case["tokens"]
    ]
    return Tokenizer.from_str(json.dumps(file))


def solve(case):
    plain, renamed = tokenizer_of(case), tokenizer_of(case, rename=True)
    begin, end = NAMES
    solved = []
    for text in case["texts"]:
        try:
            ids = plain.encode(text, add_special_tokens=False).ids
            prompt = renamed.encode(begin + text + end, add_special_tokens=False).ids
        except BaseException as error:
            # `tokenizers` panics if `lstrip` of a token reaches into spaces that `rstrip` of another took.
            if "bad split" not in str(error):
                raise
            continue
        # A normalizer can keep BOS or EOS from being found here. Then the two texts are not the same.
        ends = {renamed.token_to_id(name) for name in NAMES}
        solved.append({"text": text, "ids": ids, "prompt": prompt if ends <= set(prompt) else None})
    return {**case, "texts": solved}


def extra(content="<extra>", **flags):
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": content, **plain, **flags}


def file_cases():
    """Directories with tokens outside tokenizer.json: the files that replace those of `byte_level`."""
    decoder = {"422": extra(special=True), "423": extra("<tag>", special=False, rstrip=True)}
    yield "added_tokens_decoder", {"tokenizer_config.json": {"added_tokens_decoder": decoder}}
    changed = {"421": extra("<think>", lstrip=True, special=False)}
    yield "changed flags", {"tokenizer_config.json": {"added_tokens_decoder": changed}}
    yield "the map is not read beside a decoder", {
        "tokenizer_config.json": {
            "added_tokens_decoder": {"422": extra(special=True)}, "eos_token": "<|im_end|>",
        },
        "special_tokens_map.json": {"pad_token": "<tag>", "eos_token": "<|endoftext|>"},
    }
    yield "added_tokens.json", {
        "tokenizer_config.json": {"pad_token": "<extra>"},
        "added_tokens.json": {"<tag>": 423, "<extra>": 422},
    }
    yield "special_tokens_map.json overrides", {
        "tokenizer_config.json": {"eos_token": "<|im_end|>"},
        "special_tokens_map.json": {"eos_token": "<|endoftext|>", "pad_token": extra("<tag>")},
    }
    yield "named tokens", {"tokenizer_config.json": {"pad_token": "<extra>", "image_token": "<tag>"}}
    both = ["<extra>", "<tag>"]
    yield "additional_special_tokens", {"tokenizer_config.json": {"additional_special_tokens": both}}
    named = {"image_token": "<tag>"}
    yield "extra_special_tokens, a map", {"tokenizer_config.json": {"extra_special_tokens": named}}
    yield "extra_special_tokens, a list", {
        "tokenizer_config.json": {"extra_special_tokens": ["<tag>"], "additional_special_tokens": ["<extra>"]}
    }
    yield "split_special_tokens", {"tokenizer_config.json": {"split_special_tokens": True}}


FILE_TEXTS = ["x<extra>y", "a <tag>  b", "x <think> y", "<|im_end|><|endoftext|>", "<tag><extra>"]


def solve_files(name, files):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "tokenizer.json").write_text(json.dumps(base("byte_level")), encoding="utf-8")
        for file, value in files.items():
            if file == "tokenizer_config.json":
                value["tokenizer_class"] = "PreTrainedTokenizerFast"
            (folder / file).write_text(json.dumps(value), encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        names = ["bos_token", "eos_token", "pad_token"]
        return {
            "name": name,
            "files": files,
            "special_tokens": {key: str(getattr(tokenizer, key)) for key in names if getattr(tokenizer, key)},
            "texts": [
                {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False)} for text in FILE_TEXTS
            ],
        }


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--cases", type=int, default=120, help="number of random cases")
    parser.add_argument("--seed", type=int, help="tries other cases and writes nothing")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed or 0)
    cases = {
        "random": [solve(random_case(chance)) for _ in range(arguments.cases)],
        "files": [solve_files(name, files) for name, files in file_cases()],
    }
    text = json.dumps(cases, ensure_ascii=False, separators=(",", ":")) + "\n"
    if arguments.seed is None:
        (DATA / "added_tokens.json").write_text(text, encoding="utf-8")
        return
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        command = ["cargo", "test", "--test", "it", "text::added_tokens"]
        environment = {**os.environ, "OCTANT_TOKENIZATION_CASES": file.name}
        subprocess.run(command, cwd=ROOT, check=True, env=environment)
    print(f"{arguments.cases} random tokenizers and {len(cases['files'])} directories: the same ids")


if __name__ == "__main__":
    main()
