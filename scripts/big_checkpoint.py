#!/usr/bin/env python3
"""Makes a checkpoint as large as one likes with the 340B's tensor names and layer shapes, to measure loading.

    python3 scripts/big_checkpoint.py DIRECTORY --format FORMAT [--layers N] [--vocab IDS] [--shard-gb GB]

FORMAT is bf16, autofp8 (a scale per tensor, activations per token), compressed-tensors (a BF16 scale per channel) or
modelopt (a scale per tensor, and static activation scales). Weights are random and finite, one block of them repeated
from a different place for each tensor: fine for measuring, useless for anything else. Two layers and 24000 ids are 8.7 GB
in FP8; one layer is as much in BF16. There is no tokenizer: `octant bench load` needs none. Needs Python alone.
"""

import argparse
import json
import os
import random
import struct
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ["bf16", "autofp8", "compressed-tensors", "modelopt"]
SIZES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
# Bytes that are repeated: odd, so that rows do not repeat.
BLOCK = (8 << 20) + 6
LINEAR_SCALE = 2.0**-12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--layers", type=int, help="default: 2, or 1 of bf16")
    parser.add_argument("--vocab", type=int, default=24000)
    parser.add_argument("--shard-gb", type=float, default=2.0)
    args = parser.parse_args()
    layers = args.layers or (1 if args.format == "bf16" else 2)
    config = json.loads((ROOT / "models/nemotron-4-340b-instruct/config.json").read_text())
    config.pop("quantization_config")
    config |= {"num_hidden_layers": layers, "vocab_size": args.vocab} | quantization(args.format)
    args.directory.mkdir(parents=True, exist_ok=True)
    (args.directory / "config.json").write_text(json.dumps(config, indent=2))
    total = write(args.directory, shards(tensors(config, args.format), args.shard_gb * 1e9))
    print(f"wrote {total / 1e9:.2f} GB to {args.directory}")


def quantization(form: str) -> dict:
    """The part of config.json that says how weights are stored."""
    if form == "bf16":
        return {}
    if form == "autofp8":
        quant = {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["lm_head"]}
    elif form == "modelopt":
        quant = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
    else:
        eight = {"num_bits": 8, "type": "float"}
        group = {
            "targets": ["Linear"],
            "weights": eight | {"strategy": "channel", "dynamic": False},
            "input_activations": eight | {"strategy": "token", "dynamic": True},
        }
        quant = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"]}
        quant["config_groups"] = {"group_0": group}
    return {"quantization_config": quant}


def tensors(config: dict, form: str) -> list[tuple[str, str, list[int]]]:
    """(name, type, shape) of all, in the order of the model."""
    hidden, ffn, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    linear = {
        "self_attn.q_proj": [q, hidden],
        "self_attn.k_proj": [kv, hidden],
        "self_attn.v_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, q],
        "mlp.up_proj": [ffn, hidden],
        "mlp.down_proj": [hidden, ffn],
    }
    found = [("model.embed_tokens.weight", "BF16", [config["vocab_size"], hidden])]
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            found += [(f"{base}{norm}.{part}", "BF16", [hidden]) for part in ["weight", "bias"]]
        for name, shape in linear.items():
            found += module(base + name, shape, form)
    found += [(f"model.norm.{part}", "BF16", [hidden]) for part in ["weight", "bias"]]
    return found + [("lm_head.weight", "BF16", [config["vocab_size"], hidden])]


def module(name: str, shape: list[int], form: str) -> list[tuple[str, str, list[int]]]:
    """A linear module's tensors."""
    if form == "bf16":
        return [(f"{name}.weight", "BF16", shape)]
    scales = {
        "autofp8": [("weight_scale", "F32", [])],
        "compressed-tensors": [("weight_scale", "BF16", [shape[0], 1])],
        "modelopt": [("weight_scale", "F32", []), ("input_scale", "F32", [])],
    }
    return [(f"{name}.weight", "F8_E4M3", shape)] + [(f"{name}.{s}", t, dims) for s, t, dims in scales[form]]


def size(tensor: tuple[str, str, list[int]]) -> int:
    count = SIZES[tensor[1]]
    for n in tensor[2]:
        count *= n
    return count


def shards(all_tensors: list, limit: float) -> list[list]:
    """Files of about `limit` bytes, each at least one tensor."""
    files, used = [[]], 0
    for tensor in all_tensors:
        if files[-1] and used + size(tensor) > limit:
            files.append([])
            used = 0
        files[-1].append(tensor)
        used += size(tensor)
    return files


def write(directory: Path, files: list[list]) -> int:
    blocks = {"F8_E4M3": codes(), "BF16": halves()}
    weight_map, total = {}, 0
    for number, file in enumerate(files, 1):
        # As the safetensors library orders them: wide elements first, then by name.
        file = sorted(file, key=lambda t: (-SIZES[t[1]], t[0]))
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        total += write_file(directory / name, file, blocks)
        weight_map |= {tensor[0]: name for tensor in file}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return total


def write_file(path: Path, file: list, blocks: dict[str, bytes]) -> int:
    header, at = {}, 0
    for tensor in file:
        offsets = [at, at + size(tensor)]
        header[tensor[0]] = {"dtype": tensor[1], "shape": tensor[2], "data_offsets": offsets}
        at = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in file:
            if "_scale" in tensor[0]:
                out.write(scales(tensor))
            else:
                fill(out, blocks[tensor[1]], tensor)
        # So that measuring can drop the file from the cache.
        out.flush()
        os.fsync(out.fileno())
    return at


def scales(tensor: tuple[str, str, list[int]]) -> bytes:
    single = struct.pack("<f", LINEAR_SCALE if "weight" in tensor[0] else 1.0)
    # A power of two: BF16 is its upper half.
    return (single if tensor[1] == "F32" else single[2:]) * (size(tensor) // SIZES[tensor[1]])


def fill(out, block: bytes, tensor: tuple[str, str, list[int]]) -> None:
    """The block again and again, from a place that the name decides."""
    start = sum(tensor[0].encode()) * 4242 % (BLOCK // 2) * 2
    left, view = size(tensor), memoryview(block)
    while left:
        piece = view[start : start + min(left, BLOCK - start)]
        out.write(piece)
        left -= len(piece)
        start = 0


def codes() -> bytes:
    """Random E4M3 codes; the two that are NaN become others."""
    return random.Random(1).randbytes(BLOCK).translate(bytes(c & 0xFE if c & 0x7F == 0x7F else c for c in range(256)))


def halves() -> bytes:
    """Random BF16 of either sign with magnitudes from 2^-15 to 2^-6, about the deviation of trained weights."""
    upper = bytes((c & 0x80) | 0x38 | (c % 5) for c in range(256))
    block = bytearray(random.Random(2).randbytes(BLOCK))
    block[1::2] = block[1::2].translate(upper)
    return bytes(block)


if __name__ == "__main__":
    main()
