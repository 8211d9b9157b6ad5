#!/usr/bin/env python3
"""Makes tests/data/text/sentencepiece_models: small models, and SentencePiece's encodings of hard texts.

    pip install "sentencepiece==0.2.*" protobuf
    python scripts/make_sentencepiece_fixture.py

The four models are trained on the licence and the lines below:

- `plain`: as NVIDIA describes the tokenizer of Nemotron-4: text unchanged, single digits, byte fallback;
- `spaces`: the same without pieces of several spaces;
- `nmt_nfkc`: SentencePiece's defaults;
- `rules`: a few normalisation rules of its own.

A model file is a protobuf message, so bytes appended to it override or add fields. The other cases are one of
these models with appended bytes. Running the script again writes the same files.
"""

import io
import json
import pathlib
import random
import tempfile
import unicodedata

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "data" / "text" / "sentencepiece_models"

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox runs on and on.",
    "def add(a, b):",
    "    return a + b",
    "        for item in items:    # four and eight spaces",
    "\tif (x == 0) { return; }",
    "Numbers: 0 1 2 3 4 5 6 7 8 9 10 42 100 1234 3.14159 2024",
    "Les élèves français étudient où ça leur plaît. Über München fährt täglich ein Zug.",
    "Tiếng Việt có dấu: đường phố, người, nước, một hai ba bốn năm.",
    "Москва и Киев, Москва и Киев. Добрый день.",
    "東京は日本の首都です。ガギグゲゴ がぎぐげご。你好，世界。한국어 글자 가각간.",
    "अ आ नमस्ते हिन्दी. مرحبا بالعالم. שלום עולם.",
    "a ab aab abab ababab aaa aaaa aaaaaaaa --- ---- -------- ====",
    "extra_id extra id User System Assistant <b>bold</b> [1] {x} a < b > c",
] * 4

SPELLED = [
    "<extra_id_1>User\nHi\n<extra_id_1>Assistant\n",
    "<extra_id_0>System\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n",
    "<extra_id_0>System\nBe brief.\n<extra_id_1>User\nWhat is 12345?\n<extra_id_1>Assistant\n",
    "<extra_id_1><extra_id_2>", "a<extra_id_1>b", "a <extra_id_1> b", " <extra_id_1>x", "x <extra_id_7>",
    "  <extra_id_1>  x  ",
    "<extra_id_8>", "<extra_id_1", "extra_id_1>", "<<extra_id_1>>", "<extra_<extra_id_1>id_1>",
    "x<extra_id_10>",
]

TEXTS = [
    "", " ", "  ", "   ", "a", " a", "a ", "  a  ", "hello world", " hello  world ", "a   b    c     d",
    " " * 37 + "x",
    "\n", "\n\n\n", "\t", "\t\ttab", "a\r\nb\r\n", "line\n  indented\n\n", "\u00a0nbsp\u3000wide\u2009thin",
    "x \u00a0 y",
    "def add(a, b):\n    return a + b\n", "1234567890", "3.14159", "x12y345", "２０２４年", "①②③ Ⅳ ½ ㎏ ﬁ ™",
    "é e\u0301 e\u0302\u0301 ê\u0301 a\u0323\u0302 a\u0302\u0323 ệ e\u0323\u0302", "A\u030a Å \u212b",
    "o\u0338 n\u0303o", "Ａ\u0301Ａ",
    "\u0344 υ\u0308\u0301", "か\u3099き\u3099 ガ ｶﾞ", "\u1100\u1161\u11a8 가 \u1112\u1161\u11ab", "ㅎㅏㄴ", "한국어 글자",
    "مُحَمَّد", "\u0645\u064f\u062d\u0651\u064e", "שָׁלוֹם", "\u05e9\u05c1\u05b8", "नमस्ते क़ \u0915\u093c",
    "\u0cc6\u0cc2", "ทำ น้ำ", "Ti\u00ea\u0301ng Vi\u1ec7t",
    "東京は日本の首都です。", "你好，世界！～~", "Москва, Ёлка, й и\u0306", "😀", "👩\u200d👩\u200d👧\u200d👦 family", "🇫🇷🏳️\u200d🌈",
    "a😀b",
    "\u0001\u0002a\u007f", "a\u0001 \u0002b", "\ufeffBOM", "\u200b\u200e\u2028", "\ufffd",
    "\u2581under\u2581score\u2581", "\u2581", "a \u2581 b",
    "\U00010348\U0001d400 \U000e0041", "\U0001ffff", "a" * 64, "ab" * 33, "aab" * 21, "-" * 41,
    "=" * 7 + " " * 5 + "=" * 9,
    "<unk", "<0x41>", "<0xE2><0x96>", "#version 3", "GNU Lesser General Public License",
    "perpetual, worldwide, non-exclusive",
]

# Letters of Unicode 14 and later: only models without NFKC have to agree with SentencePiece on them.
NEWER = ["\U000105d2\u0307", "\U0001ccd6\u0301", "\U00016122\U0001611f"]


def random_texts():
    """Yields 150 random concatenations of parts of the texts above."""
    draw = random.Random(4)
    parts = (
        [t[i : i + 6] for t in TEXTS + CORPUS[:13] for i in range(0, len(t), 6)]
        + SPELLED
        + [" ", "  ", "\n", "\t"]
    )
    for _ in range(150):
        text = "".join(draw.choice(parts) for _ in range(draw.randrange(1, 12)))
        yield text if draw.random() < 0.8 else unicodedata.normalize("NFD", text)


def train(size, **options):
    """Trains a BPE model with `size` pieces, and returns it as a ModelProto."""
    model = io.BytesIO()
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS + [line for line in licence if line.strip()]), model_writer=model,
        vocab_size=size,
        model_type="bpe", character_coverage=1.0, num_threads=1, minloglevel=2, pad_id=0, unk_id=1, bos_id=2,
        eos_id=3,
        user_defined_symbols=[f"<extra_id_{i}>" for i in range(8)], **options,
    )  # fmt: skip
    return proto.ModelProto.FromString(model.getvalue())


def train_with(rules, size, **options):
    """Trains a model with normalisation rules (hexadecimal code points, a tab, their replacement)."""
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write(rules)
        file.flush()
        model = train(size, normalization_rule_tsv=file.name, **options)
    model.normalizer_spec.ClearField("normalization_rule_tsv")
    return model


def more(pieces=(), **normalizer):
    """Returns bytes that, appended to a model, set fields of the normalizer and add pieces."""
    message = proto.ModelProto(normalizer_spec=proto.NormalizerSpec(**normalizer))
    for text, score in pieces:
        message.pieces.add(piece=text, score=score)
    return message.SerializePartialToString()


def golden(name, model, appended, texts):
    """Returns SentencePiece's encodings of the texts, and its decodings of random runs of ids."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model + appended)
    draw = random.Random(5)
    ordinary = [
        i
        for i in range(processor.vocab_size())
        if not (processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i))
    ]
    runs = [[draw.choice(ordinary) for _ in range(draw.randrange(1, 8))] for _ in range(100)]
    known = lambda ids: [i for i in ids if not processor.is_unknown(i)]
    return {
        "model": name,
        "more": appended.hex(),
        "encode": [
            {"text": t, "ids": processor.encode(t), "decoded": processor.decode(known(processor.encode(t)))}
            for t in texts
        ],
        "decode": [{"ids": run, "text": processor.decode(run)} for run in runs],
    }


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    texts = TEXTS + SPELLED + list(random_texts())
    all_texts = texts + NEWER
    as_is = {
        "byte_fallback": True,
        "split_digits": True,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
    }
    # CR LF becomes LF, NO-BREAK SPACE a space, U+2019 an apostrophe; ZERO WIDTH SPACE is removed.
    few = "D A\tA\nA0\t20\n2019\t27\n200B\t\n"
    models = {
        "plain": train(900, allow_whitespace_only_pieces=True, **as_is),
        "spaces": train(600, **as_is),
        "nmt_nfkc": train(700),
        "rules": train_with(
            few, 600, byte_fallback=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True
        ),
    }
    models = {name: model.SerializeToString() for name, model in models.items()}
    for name, model in models.items():
        (OUT / f"{name}.model").write_bytes(model)
    # Runs of spaces with equal scores, as in Llama's models.
    runs = [("▁" * n, -1e9) for n in (4, 2, 8, 16, 3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15)]
    cases = [
        golden("plain", models["plain"], b"", all_texts),
        golden("plain", models["plain"], more(add_dummy_prefix=False), all_texts),
        golden("spaces", models["spaces"], more(remove_extra_whitespaces=True), all_texts),
        golden(
            "spaces", models["spaces"], more(remove_extra_whitespaces=True, add_dummy_prefix=False), all_texts
        ),
        golden("spaces", models["spaces"], more(runs), all_texts),
        golden("spaces", models["spaces"], more(runs[:4]), all_texts),
        golden("nmt_nfkc", models["nmt_nfkc"], b"", texts),
        golden(
            "nmt_nfkc",
            models["nmt_nfkc"],
            more(add_dummy_prefix=False, remove_extra_whitespaces=False),
            texts,
        ),
        golden("rules", models["rules"], b"", all_texts),
        golden("rules", models["rules"], more(add_dummy_prefix=False), all_texts),
    ]
    (OUT / "golden.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n", encoding="utf-8")
    # Overlapping rules: "ab" and "bcd" both match in "abcd".
    overlapping = train_with(
        "61 62\t78\n62 63 64\t79\n", 600, byte_fallback=True
    ).normalizer_spec.precompiled_charsmap
    (OUT / "overlapping.charsmap").write_bytes(overlapping)


main()
