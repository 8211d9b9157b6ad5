#!/usr/bin/env python3
"""Makes tests/data/nemo: two golden models in the form of NVIDIA's unpacked .nemo directories.

    python3 scripts/make_nemo_fixture.py            (requires numpy, ml_dtypes, tensorstore)

Each directory holds model_config.yaml, a small SentencePiece model, and model_weights: one zarr array per
tensor in BF16, written by a zarr library; tensors of layers are stacked along the first axis. A chunk holds
one rank's share of one layer. Q, K and V are one matrix, grouped by KV head.

- `base` is `wide`: two KV heads, and a vocabulary that is not a multiple of its 8 chunks.
- `reward` is `nemotron` with a random reward head and its bias, chunk indices separated by `/`, and two
  layers per chunk of linear_fc1.
"""

import json
import shutil
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import tensorstore as ts

DATA = Path(__file__).resolve().parent.parent / "tests/data"
OUT = DATA / "nemo"
SENTENCEPIECE = DATA / "text/sentencepiece_models/spaces.model"
REWARDS = 9

YAML = """\
mcore_gpt: true
target: nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel
encoder_seq_length: {max_position_embeddings}
max_position_embeddings: ${{.encoder_seq_length}}
num_layers: {num_hidden_layers}
hidden_size: {hidden_size}
ffn_hidden_size: {intermediate_size}
num_attention_heads: {num_attention_heads}
num_query_groups: {num_key_value_heads}
init_method_std: 0.0063
use_scaled_init_method: true
hidden_dropout: 0.0
kv_channels: {head_dim}
apply_query_key_layer_scaling: true
normalization: layernorm1p
layernorm_epsilon: 1.0e-05
make_vocab_size_divisible_by: 128
bias: false
activation: squared-relu
headscale: false
transformer_block_type: pre_ln
position_embedding_type: rope
rotary_percentage: 0.5
attention_type: multihead
share_embeddings_and_output_weights: false
seq_len_interpolation_factor: null
precision: bf16-mixed
tokenizer:
  library: sentencepiece
  type: null
  model: nemo:0123456789abcdef_nemotron.model
  tokenizer_model: nemo:0123456789abcdef_nemotron.model
  vocab_file: null
optim:
  name: distributed_fused_adam
  lr: 3.001e-07
"""


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    make("base", "wide", ".", ranks=8, reward=False)
    make("reward", "nemotron", "/", ranks=4, reward=True)


def make(name: str, source: str, separator: str, ranks: int, reward: bool) -> None:
    """Writes the directory `name` from the golden model `source`, with chunks for `ranks` ranks."""
    config = json.loads((DATA / "golden" / source / "config.json").read_text())
    tensors = read(DATA / "golden" / source / "model.safetensors")
    folder = OUT / name
    weights = folder / "model_weights"
    weights.mkdir(parents=True)
    (folder / "model_config.yaml").write_text(YAML.format(**config))
    shutil.copy(SENTENCEPIECE, folder / "0123456789abcdef_nemotron.model")
    (weights / "common.pt").write_bytes(b"stands for a pickle\n")
    metadata = {"sharded_backend": "zarr", "sharded_backend_version": 1, "common_backend": "torch",
                "common_backend_version": 1}
    (weights / "metadata.json").write_text(json.dumps(metadata) + "\n")
    layers = range(config["num_hidden_layers"])

    def stacked(key):
        return np.stack([tensors[f"model.layers.{i}.{key}"] for i in layers])

    def write(key, array, chunks):
        save(weights / key, array, chunks, separator)

    base = "model.decoder.layers."
    qkv = np.stack([grouped(tensors, i, config) for i in layers])
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    per_chunk = 2 if reward else 1
    write(base + "self_attention.linear_qkv.weight", qkv, [1, qkv.shape[1] // ranks, hidden])
    proj = stacked("self_attn.o_proj.weight")
    write(base + "self_attention.linear_proj.weight", proj, [1, hidden, proj.shape[2] // ranks])
    write(base + "mlp.linear_fc1.weight", stacked("mlp.up_proj.weight"), [per_chunk, ffn // ranks, hidden])
    write(base + "mlp.linear_fc2.weight", stacked("mlp.down_proj.weight"), [1, hidden, ffn // ranks])
    for theirs, ours in [
        ("self_attention.linear_qkv", "input_layernorm"),
        ("mlp.linear_fc1", "post_attention_layernorm"),
    ]:
        for part in ["weight", "bias"]:
            write(f"{base}{theirs}.layer_norm_{part}", stacked(f"{ours}.{part}"), [1, hidden])
    for extra in ["self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2"]:
        state = weights / f"{base}{extra}._extra_state"
        state.mkdir()
        for layer in layers:
            (state / f"shard_{layer}_{len(layers)}.pt").write_bytes(b"stands for a pickle\n")
    for part in ["weight", "bias"]:
        write(f"model.decoder.final_layernorm.{part}", tensors[f"model.norm.{part}"], [hidden])
    rows = -(-config["vocab_size"] // ranks)
    write("model.embedding.word_embeddings.weight", tensors["model.embed_tokens.weight"], [rows, hidden])
    write("model.output_layer.weight", tensors["lm_head.weight"], [rows, hidden])
    if reward:
        random = np.random.default_rng(7)
        head = random.standard_normal((REWARDS, hidden)).astype(ml_dtypes.bfloat16)
        write("model.rm_head.weight", head, [REWARDS, hidden // ranks])
        write("model.rm_head.bias", random.standard_normal(REWARDS).astype(ml_dtypes.bfloat16), [REWARDS])
        # The tests compare the imported head with these bytes.
        (folder / "rm_head.expected").write_bytes(head.tobytes())


def grouped(tensors, layer, config):
    """Returns Megatron's QKV matrix: for each KV head its query heads, its key head and its value head."""
    base = f"model.layers.{layer}.self_attn."
    size = config["head_dim"]
    groups = config["num_key_value_heads"]
    q, k, v = (tensors[f"{base}{part}_proj.weight"] for part in "qkv")
    q = q.reshape(groups, -1, q.shape[-1])
    k = k.reshape(groups, size, -1)
    v = v.reshape(groups, size, -1)
    return np.concatenate([q, k, v], axis=1).reshape(-1, q.shape[-1])


def save(path: Path, array, chunks, separator: str) -> None:
    """Writes a zarr array."""
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": {"shape": list(array.shape), "chunks": chunks, "dtype": "bfloat16", "compressor": None,
                     "fill_value": None, "order": "C", "dimension_separator": separator},
    }
    store = ts.open(spec, create=True).result()
    store.write(array).result()


def read(path: Path) -> dict:
    """Returns the BF16 tensors of a safetensors file by name."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)

    def tensor(info):
        start, end = (8 + size + offset for offset in info["data_offsets"])
        return np.frombuffer(data[start:end], ml_dtypes.bfloat16).reshape(info["shape"])

    return {key: tensor(info) for key, info in header.items()}


if __name__ == "__main__":
    main()
