#!/usr/bin/env python3
"""Makes a draft model for tests and measurements: some layers of a model, with its embedding, its final norm
and its tokenizer. Such a model is not trained to predict alone, so it shows little of what a real draft model
gains.

    python3 scripts/draft_model.py DIR OUT --layers 0-5,28,29
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=numbers, default=numbers("0-3"))
    args = parser.parse_args()
    config = json.loads((args.directory / "config.json").read_text())
    if args.layers != sorted(set(args.layers)) or args.layers[-1] >= config["num_hidden_layers"]:
        raise SystemExit(f"--layers: expected ascending numbers below {config['num_hidden_layers']}")
    config["num_hidden_layers"] = len(args.layers)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    for name in COPIED:
        if (args.directory / name).exists():
            shutil.copy(args.directory / name, args.out / name)
    data = (args.directory / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    kept, parts, end = {}, [], 0
    for name, about in header.items():
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if name == "__metadata__" or layer and int(layer.group(1)) not in args.layers:
            continue
        first, last = about["data_offsets"]
        parts.append(data[8 + length + first:8 + length + last])
        if layer:
            number = args.layers.index(int(layer.group(1)))
            name = name.replace(layer.group(0), f".layers.{number}.")
        kept[name] = {**about, "data_offsets": [end, end + last - first]}
        end += last - first
    text = json.dumps(kept).encode()
    text += b" " * (-len(text) % 8)
    with open(args.out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(parts)
    print(f"{args.out}: {len(args.layers)} layers, {end / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
