#!/usr/bin/env python3
"""Makes tests/data/checkpoints: what transformers and compressed-tensors read in configuration files.

    pip install "transformers==5.*"
    pip install --no-deps compressed-tensors
    python scripts/make_checkpoint_fixtures.py

PyTorch is not needed: a stand-in for `torch.nn.Module` is enough for compressed-tensors to match modules.

- configurations.json: changes to the `config.json` of each family, and the values that transformers resolves,
  or the key that Octant refuses because libraries disagree on it or because it is not supported.
- patterns.json: Python's `re.match` and `fnmatch`, transformers' and compressed-tensors' matching on names of
  modules, each as one digit for each module; null where the library refuses the pattern.
"""

import fnmatch
import importlib.util
import itertools
import json
import math
import pathlib
import re
import sys
import types

from transformers import LlamaConfig, NemotronConfig
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import logging

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "checkpoints"

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BASE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 384,
}
FAMILIES = {
    "llama": (LlamaConfig, {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}),
    "nemotron": (NemotronConfig, {"architectures": ["NemotronForCausalLM"], "model_type": "nemotron"}),
}


def without(values, *keys):
    return {key: value for key, value in values.items() if key not in keys}


def old_name(values):
    return {"type" if key == "rope_type" else key: value for key, value in values.items()}


def rope_variants():
    """All combinations of where the parameters of the rotary embedding can stand."""
    theta = {"rope_theta": 500000.0}
    plain = {"rope_type": "default", "rope_theta": 20000.0}
    scalings = [
        None, {}, LLAMA3, old_name(LLAMA3), LLAMA3 | theta,
        without(LLAMA3, "original_max_position_embeddings"),
        {"rope_type": "default"}, {"type": "default"} | theta, {"factor": 2.0},
        LLAMA3 | {"type": "default"}, {"rope_type": "default", "type": "llama3"},
    ]
    parameters = [
        None, {}, plain, LLAMA3 | {"rope_theta": 30000.0}, old_name(LLAMA3), {"rope_theta": 40000.0},
        plain | {"partial_rotary_factor": 0.25},
    ]
    for scaling, parameter in itertools.product(scalings, parameters):
        for top in ({}, {"rope_theta": 1000000.0}, {"original_max_position_embeddings": 128}):
            yield top | {"rope_scaling": scaling, "rope_parameters": parameter}
    yield {}
    yield {"rope_theta": 7.5}
    yield {"rope_theta": 10000}


def other_variants():
    """Variants of the other values."""
    for fraction in (0.25, 0.5, 1.0):
        yield {"partial_rotary_factor": fraction, "rope_theta": 10000.0}
        yield {"rope_parameters": {"partial_rotary_factor": fraction, "rope_theta": 10000.0}}
        yield {"partial_rotary_factor": 0.75, "rope_parameters": {"partial_rotary_factor": fraction}}
    for heads in ({"head_dim": 32}, {"head_dim": None}):
        yield heads
    for heads in (1, 4):
        yield {"num_key_value_heads": heads}
    for eps in ({"rms_norm_eps": 0.25}, {"norm_eps": 0.25}, {"norm_eps": 0.25, "layer_norm_eps": 0.125}):
        yield eps
    for tied in (True, False):
        yield {"tie_word_embeddings": tied}
    for dtype in ({"dtype": "bfloat16"}, {"torch_dtype": "float16"}):
        yield dtype
    yield {"dtype": "bfloat16", "torch_dtype": "float32"}
    for eos in (2, 7, [3, 5], [9]):
        yield {"eos_token_id": eos}
    yield {"bos_token_id": None, "pad_token_id": 0, "use_cache": False}
    yield {"pretraining_tp": 2, "temperature": 0.5}
    yield {"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0, "high_freq_factor": 2.0}}
    yield {"rope_parameters": LLAMA3 | {"factor": 0.5}}
    yield {"rope_parameters": without(LLAMA3, "factor")}
    yield {"rope_parameters": without(LLAMA3, "low_freq_factor")}
    yield {"rope_scaling": {"type": "linear", "factor": 2.0}}
    yield {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    yield {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}}


def frequencies(config, family):
    """The inverse frequencies of the resolved parameters. Llama's default embedding rotates whole heads."""
    config.standardize_rope_params()
    rope = config.rope_parameters
    scaled = rope["rope_type"] == "llama3"
    fraction = rope.get("partial_rotary_factor", 1.0) if family == "nemotron" or scaled else 1.0
    dim = int(config.head_dim * fraction)
    values = [rope["rope_theta"] ** (-i / dim) for i in range(0, dim, 2)]
    if scaled:
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        length = rope["original_max_position_embeddings"]
        for i, value in enumerate(values):
            wavelength = 2 * math.pi / value
            if wavelength > length / low:
                values[i] = value / factor
            elif wavelength >= length / high:
                smooth = (length / wavelength - low) / (high - low)
                values[i] = (1 - smooth) * value / factor + smooth * value
    elif rope["rope_type"] != "default":
        raise ValueError(f"rope_type {rope['rope_type']}")
    return values


def refused(variant, family):
    """The key that is refused, if one is: fractions that libraries read differently, and other scalings."""
    chosen = variant.get("rope_scaling") or variant.get("rope_parameters") or {}
    kind = chosen.get("rope_type", chosen.get("type", "default"))
    if kind not in ("default", "llama3"):
        return "rope_type"
    if kind == "llama3":
        for key in ("factor", "low_freq_factor", "high_freq_factor"):
            if key not in chosen:
                return key
        if chosen["factor"] < 1 or chosen["low_freq_factor"] >= chosen["high_freq_factor"]:
            return "factor"
    if family == "llama":
        fraction = chosen.get("partial_rotary_factor", variant.get("partial_rotary_factor", 1.0))
        if fraction != 1.0:
            return "partial_rotary_factor"
    return None


def configurations():
    rows = []
    for family, (kind, names) in FAMILIES.items():
        # A quarter of them is enough for the second family.
        ropes = list(rope_variants())[:: 1 if family == "llama" else 4]
        for variant in itertools.chain(ropes, other_variants()):
            row = {"family": family, "change": variant}
            variant = names | BASE | variant
            key = refused(variant, family)
            if key is not None:
                row["refused"] = key
            else:
                config = kind.from_dict(json.loads(json.dumps(variant)))
                eos = config.eos_token_id if "eos_token_id" in variant else []
                row["expected"] = {
                    "inv_freq": [float(f"{value:.9g}") for value in frequencies(config, family)],
                    "head_dim": config.head_dim,
                    "kv_heads": config.num_key_value_heads,
                    "norm_eps": config.norm_eps if family == "nemotron" else config.rms_norm_eps,
                    "tied": bool(config.tie_word_embeddings),
                    "eos": eos if isinstance(eos, list) else [eos],
                }
            rows.append(row)
    return rows


LINEAR = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
          "mlp.up_proj", "mlp.down_proj"]
MODULES = [f"model.layers.{layer}.{name}" for layer in (0, 1, 11) for name in LINEAR]

PATTERNS = [
    r".*self_attn.*", r"model\.layers\.1\..*", r".*layers\.(1)\..*", r".*down_proj", r".*down_proj$",
    r"down_proj", r"model", r"^model\.layers\.0", r"model.layers.1", r"model\.layers\.1$",
    r".*\.[qkv]_proj", r".*[^a-n]_proj$", r"model\.layers\.(0|11)\.(mlp|self_attn)\.(?!down|o_)",
    r".*(?<=gate)_proj", r".*(?<!up)_proj$", r"(?i).*SELF_ATTN", r"(?i:MODEL)\.layers\.1",
    r"model\.layers\.\d\.", r"model\.layers\.\d{2}\..*", r"model\.layers\.\d{,1}\.mlp",
    r"model\.layers\.1{2}\.", r"model\.layers\.[0-9]+\.mlp\.(?:gate|up)_proj\Z", r"\Amodel\.layers\.1\b",
    r"model\.layers\.1\B", r".*\bmlp\b", r"model\.layers\.(?P<n>\d)(?P=n)\.", r"model\.layers\.(\d)\1\.",
    r"model\.(?#a comment)layers\.0", r".*layers\.1.*?proj", r"model\.layers\.\d++\.mlp",
    r"(?>model\.layers\.1)1", r"[[]", r"[]m]odel", r"[^]x]odel", r"mode[l&&x]", r"mode[a--z]", r"[m-]odel",
    r"[-m]odel", r"mode[\w]\.", r"m[\w.]+attn", r"\x6dodel", r"\u006dodel", r"model\056", r"mod{e}l",
    r"model{", r"model{1", r"", r".*", r"\w+\.\w+\.\d+\.\w+\.\w+$",
    r"model\.layers\.(?:1|11)\.self_attn\.o_proj|.*gate", r"\d", r".\s*odel", r"(?s:.)odel", r"(?a)model",
    r"(?x) model", r"(?P<a>m)(?(a)odel|x)", r"(", r")", r"[", r"*", r"a**", r"\q", r"\p{L}odel",
    r"(?<n>m)odel", r"mod(?i)EL", r"model\z", r"\Q", r"(?<=m.*)o", r"\h", r"[\d-\w]odel", r"[z-a]",
    r"m{2,1}", r"model\Z.", r"model(\.layers)?(\.1)?\.", r"model\.layers\.(?=1)1?1", r"m.d.l.l.y.r.",
    r"mod[e-e]l", r"~model", r"#model", r"\-", r"\ ", r"(?i)MODEL\.layers\.0", r"(?i)x|MODEL\.layers\.1\.",
    r"(?is)MODEL.layers.11", r"(?i)(?s)MODEL.LAYERS.0", r"(?#c)(?i)MODEL.layers.1\.", r"(?aimsu)x",
    r"(?ai)MODEL",
    "(?x) model [.] # a comment\n layers (?: \\. 1 ) \\.", r"(?x) (?i) MODEL\.layers\.0 [ ]?", r"(?x: model)",
    r"(?i) MODEL", r" (?i)MODEL", r"(?i)*", r"(?-i)model", r"(?L)model", r"(?ix)M o d e l \.lay",
]

SHELL = [
    "*lm_head*", "model.layers.1.*", "model.layers.1*", "*self_attn*", "*.q_proj", "model.layers.?.mlp.*",
    "*[qk]_proj", "*[!qk]_proj", "model.layers.[0-9].*", "model.layers.[0-9][0-9].*", "*.mlp.gate_proj",
    "model", "model*", "*", "", "?", "[m]odel*", "[", "model.layers.[1", "*[]_]proj", "*[!]q]_proj",
    "MODEL*", "model.layers.1.mlp.up_proj", "**up_proj", "*[k-q]_proj", "*down*", "*[a-]*",
]

PARTS = [
    "lm_head", "model.layers.1", "model.layers.1.mlp.up_proj", "self_attn", "down_proj", "mlp", "layers.1",
    "model", "model.layers.1.self_attn", "model.layers.*.mlp", "model.layers.0.mlp.down_proj", ".*gate.*",
    "model.layers.1.self_attn.qkv_proj", "model.layers.(0|1)",
]

LISTS = [
    (["Linear"], []),
    (["Linear"], ["lm_head"]),
    (["Linear"], ["lm_head", "re:.*self_attn.*"]),
    (["Linear"], [r"re:model\.layers\.1\..*"]),
    (["Linear"], ["re:.*layers\\.(1)\\..*"]),
    (["Linear"], ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.o_proj"]),
    (["Linear"], ["LlamaAttention"]),
    (["Linear"], ["LlamaMLP"]),
    (["Linear"], ["LlamaRMSNorm", "Embedding", "LlamaForCausalLMX"]),
    (["Linear"], ["model.layers.1"]),
    (["Linear"], ["model.layers.1.self_attn"]),
    (["Linear"], ["Linear"]),
    (["Module"], []),
    (["LlamaMLP"], []),
    (["LlamaAttention"], ["lm_head"]),
    (["re:.*mlp.*"], []),
    (["re:.*(gate|up)_proj", "re:.*down_proj"], ["re:.*layers.0.*"]),
    (["model.layers.0.mlp.gate_proj", "re:.*q_proj"], []),
    (["re:self_attn"], []),
    (["linear"], []),
    ([], []),
]


def compressed_tensors():
    """The function of compressed-tensors that finds the modules of a list, and a model to find them in."""
    torch, internal = types.ModuleType("torch"), types.ModuleType("compressed_tensors.utils.internal")
    module = type("Module", (), {})
    torch.nn, torch.Tensor = types.SimpleNamespace(Module=module, Parameter=object), object
    internal.InternalModule = type("InternalModule", (module,), {})
    sys.modules["torch"], sys.modules[internal.__name__] = torch, internal
    root = pathlib.Path(importlib.util.find_spec("compressed_tensors").origin).parent
    spec = importlib.util.spec_from_file_location("match", root / "utils" / "match.py")
    match = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(match)

    classes = {"": "LlamaForCausalLM", "lm_head": "Linear"}
    classes |= {"model": "LlamaModel", "model.layers": "ModuleList"}
    for layer in (0, 1, 11):
        base = f"model.layers.{layer}"
        classes |= {base: "LlamaDecoderLayer", f"{base}.input_layernorm": "LlamaRMSNorm"}
        classes |= {f"{base}.self_attn": "LlamaAttention", f"{base}.mlp": "LlamaMLP"}
        classes |= {f"{base}.{name}": "Linear" for name in LINEAR}
    named = [(name, type(kind, (module,), {})()) for name, kind in classes.items()]
    model = types.SimpleNamespace(named_modules=lambda: iter(named))
    return lambda targets, ignore: {name for name, _ in match.match_named_modules(model, targets, ignore)}


def digits(matches):
    """One digit for each module, or null if the library refuses the pattern."""
    try:
        return "".join("1" if matches(module) else "0" for module in MODULES)
    except re.error:
        return None


def patterns():
    quantised = compressed_tensors()
    lists = []
    for targets, ignore in LISTS:
        found = quantised(targets, ignore)
        lists.append({"targets": targets, "ignore": ignore, "quantised": digits(lambda name: name in found)})
    parts = {part: digits(lambda name: not should_convert_module(name, [part])) for part in PARTS}
    return {
        "modules": MODULES,
        "re_match": {p: digits(lambda name: re.match(p, name)) for p in PATTERNS},
        "fnmatch": {p: digits(lambda name: fnmatch.fnmatchcase(name, p)) for p in SHELL},
        "not_converted": parts,
        "compressed_tensors": lists,
    }


def main():
    logging.set_verbosity_error()
    OUT.mkdir(parents=True, exist_ok=True)
    rows = configurations()
    families = {family: names | BASE for family, (_, names) in FAMILIES.items()}
    lines = ",\n".join(json.dumps(row) for row in rows)
    text = f'{{"families": {json.dumps(families)},\n"rows": [\n{lines}\n]}}\n'
    (OUT / "configurations.json").write_text(text)
    found = patterns()
    (OUT / "patterns.json").write_text(json.dumps(found, indent=1) + "\n")
    supported = sum("refused" not in row for row in rows)
    print(f"{len(rows)} configurations, {supported} of them supported; {len(PATTERNS)} expressions, "
          f"{len(SHELL)} shell patterns, {len(PARTS)} parts, {len(LISTS)} lists on {len(MODULES)} modules")


if __name__ == "__main__":
    main()
