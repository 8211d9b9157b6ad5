#!/usr/bin/env python3
"""Makes models for measurements with a draft model.

A draft model of some layers of a model, with its embedding, its final norm and its tokenizer. It is not
trained to predict alone, so few of its drafts are accepted:

    python3 scripts/draft_model.py DIR OUT --layers 0-5,28,29

A larger model that computes the same: layers that change nothing are appended. The model itself is then a
draft model whose drafts are all accepted, and one that lacks a few layers has some of them rejected:

    python3 scripts/draft_model.py DIR OUT --empty-layers 60
"""

import argparse
import json
import re
import shutil
import struct
from pathlib import Path

COPIED = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]


def numbers(text):
    """The layers of a list such as 0-5,28,29."""
    ranges = [part.split("-") for part in text.split(",")]
    return [number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)]


def tensors(path):
    """Names, descriptions and bytes of the tensors of a safetensors file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    for name, about in json.loads(data[8:8 + length]).items():
        if name != "__metadata__":
            first, last = about["data_offsets"]
            yield name, about, data[8 + length + first:8 + length + last]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=numbers, help="the layers to keep; all if not given")
    parser.add_argument("--empty-layers", type=int, default=0, help="the number of layers to append")
    args = parser.parse_args()
    config = json.loads((args.directory / "config.json").read_text())
    count = config["num_hidden_layers"]
    layers = list(range(count)) if args.layers is None else args.layers
    if not layers or layers != sorted(set(layers)) or layers[-1] >= count:
        raise SystemExit(f"--layers: expected ascending numbers below {count}")
    config["num_hidden_layers"] = len(layers) + args.empty_layers
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    for name in COPIED:
        if (args.directory / name).exists():
            shutil.copy(args.directory / name, args.out / name)
    kept, parts, end = {}, [], 0

    def keep(name, about, data):
        nonlocal end
        kept[name] = {**about, "data_offsets": [end, end + len(data)]}
        parts.append(data)
        end += len(data)

    for name, about, data in tensors(args.directory / "model.safetensors"):
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if not layer:
            keep(name, about, data)
            continue
        renamed = lambda number: name.replace(layer.group(0), f".layers.{number}.")
        number = int(layer.group(1))
        if number in layers:
            keep(renamed(layers.index(number)), about, data)
        if number == 0:
            # A layer adds the outputs of these two products to the residual stream.
            adds = "o_proj" in name or "down_proj" in name
            for more in range(args.empty_layers):
                keep(renamed(len(layers) + more), about, bytes(len(data)) if adds else data)
    text = json.dumps(kept).encode()
    text += b" " * (-len(text) % 8)
    with open(args.out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(parts)
    print(f"{args.out}: {config['num_hidden_layers']} layers, {end / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
