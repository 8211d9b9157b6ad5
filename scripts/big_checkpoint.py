#!/usr/bin/env python3
"""Makes a large checkpoint with the 340B's tensor names and layer shapes, to measure loading.

    python3 scripts/big_checkpoint.py DIRECTORY --format FORMAT [--layers N] [--vocab IDS] [--shard-gb GB]

FORMAT is bf16, autofp8 (one scale per tensor, activations per token), compressed-tensors (one BF16 scale per
channel) or modelopt (one scale per tensor, and static activation scales). Weights are random and finite: one
block of bytes, repeated from a different offset for each tensor. They suit measurements and nothing else.

Two layers and 24000 ids are 8.7 GB in FP8; one layer is the same in BF16. The checkpoint has no tokenizer;
`octant bench load` needs none. Requires only Python.
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
# Length of the repeated block in bytes: not a power of two, so that rows differ.
BLOCK = (8 << 20) + 6
LINEAR_SCALE = 2.0**-12


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--layers", type=int, help="number of layers (default: 2, or 1 for bf16)")
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
    """Returns the part of config.json that describes the quantisation."""
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
    """Returns (name, type, shape) of every tensor, in the order of the model."""
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
    """Returns (name, type, shape) of the tensors of a linear module."""
    if form == "bf16":
        return [(f"{name}.weight", "BF16", shape)]
    scales = {
        "autofp8": [("weight_scale", "F32", [])],
        "compressed-tensors": [("weight_scale", "BF16", [shape[0], 1])],
        "modelopt": [("weight_scale", "F32", []), ("input_scale", "F32", [])],
    }
    return [(f"{name}.weight", "F8_E4M3", shape)] + [(f"{name}.{s}", t, dims) for s, t, dims in scales[form]]


def size(tensor: tuple[str, str, list[int]]) -> int:
    """Returns the bytes of a tensor."""
    count = SIZES[tensor[1]]
    for n in tensor[2]:
        count *= n
    return count


def shards(all_tensors: list, limit: float) -> list[list]:
    """Divides tensors into files of at most `limit` bytes, or of one larger tensor."""
    files, used = [[]], 0
    for tensor in all_tensors:
        if files[-1] and used + size(tensor) > limit:
            files.append([])
            used = 0
        files[-1].append(tensor)
        used += size(tensor)
    return files


def write(directory: Path, files: list[list]) -> int:
    """Writes all files and their index. Returns the bytes of the tensors."""
    blocks = {"F8_E4M3": codes(), "BF16": halves()}
    weight_map, total = {}, 0
    for number, file in enumerate(files, 1):
        # The order of the safetensors library: wide elements first, then by name.
        file = sorted(file, key=lambda t: (-SIZES[t[1]], t[0]))
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        total += write_file(directory / name, file, blocks)
        weight_map |= {tensor[0]: name for tensor in file}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return total


def write_file(path: Path, file: list, blocks: dict[str, bytes]) -> int:
    """Writes one safetensors file. Returns the bytes of its tensors."""
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
        # A measurement can drop only synced pages from the page cache.
        out.flush()
        os.fsync(out.fileno())
    return at


def scales(tensor: tuple[str, str, list[int]]) -> bytes:
    """Returns the bytes of a scale tensor; every scale is the same power of two."""
    single = struct.pack("<f", LINEAR_SCALE if "weight" in tensor[0] else 1.0)
    # For a power of two, BF16 is the upper half of F32.
    return (single if tensor[1] == "F32" else single[2:]) * (size(tensor) // SIZES[tensor[1]])


def fill(out, block: bytes, tensor: tuple[str, str, list[int]]) -> None:
    """Writes a tensor by repeating the block, from an offset that depends on the tensor's name."""
    start = sum(tensor[0].encode()) * 4242 % (BLOCK // 2) * 2
    left, view = size(tensor), memoryview(block)
    while left:
        piece = view[start : start + min(left, BLOCK - start)]
        out.write(piece)
        left -= len(piece)
        start = 0


def codes() -> bytes:
    """Returns random E4M3 codes without the two NaN codes."""
    return (
        random.Random(1)
        .randbytes(BLOCK)
        .translate(bytes(c & 0xFE if c & 0x7F == 0x7F else c for c in range(256)))
    )


def halves() -> bytes:
    """Returns random BF16 numbers of both signs, with magnitudes from 2^-15 to 2^-6 like trained weights."""
    upper = bytes((c & 0x80) | 0x38 | (c % 5) for c in range(256))
    block = bytearray(random.Random(2).randbytes(BLOCK))
    block[1::2] = block[1::2].translate(upper)
    return bytes(block)


if __name__ == "__main__":
    main()
