#!/usr/bin/env python3
"""Makes tests/data/golden: three tiny random models and transformers' results for them.

    python3 scripts/make_golden.py            (requires torch, transformers, safetensors)

Each model is a Hugging Face directory in BF16 with two more files. logprobs.f32 holds the log-probabilities
of all tokens at every position of the prompts, in float32, one prompt after the other. golden.json holds
the prompts, the log-probability of every prompt token, greedy continuations with the margin of each choice,
and two tolerances measured here:

- `bf16_worst`: the largest difference of a log-probability between transformers' bfloat16 and float32 runs;
- `fp8_mean_kl`: the mean KL divergence of a simulation of FP8 serving from float32. The simulation has
  weights in E4M3 with a scale per output row, inputs of linear layers in E4M3 with a scale per token, keys
  and values in E4M3 without a scale, and the embedding and LM head in BF16.
"""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, NemotronConfig, NemotronForCausalLM

OUT = Path(__file__).resolve().parent.parent / "tests/data/golden"
VOCAB = 384
PROMPTS = [5, 40, 130]
GREEDY = 24
E4M3_MAX = 448.0


def main() -> None:
    torch.manual_seed(1)
    nemotron = NemotronConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=12,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, partial_rotary_factor=0.5,
        norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False, hidden_act="relu2",
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
    make("nemotron", NemotronForCausalLM(nemotron))
    llama = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
    make("llama", LlamaForCausalLM(llama))
    # For eight ranks: three query heads each, KV heads that four ranks share, an odd vocabulary.
    wide = NemotronConfig(
        vocab_size=389, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=24,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, partial_rotary_factor=0.5,
        norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False, hidden_act="relu2",
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
    make("wide", NemotronForCausalLM(wide))


@torch.no_grad()
def make(name: str, model) -> None:
    """Writes the fixture of one model."""
    randomise(model)
    folder = OUT / name
    model.to(torch.bfloat16).save_pretrained(folder)
    for extra in folder.glob("generation_config.json"):
        extra.unlink()
    model = model.float().eval()
    prompts = [torch.randint(3, VOCAB, (1, length)) for length in PROMPTS]
    exact = [logprobs(model, ids) for ids in prompts]
    half = type(model).from_pretrained(folder, dtype=torch.bfloat16).eval()
    worst = max(
        (scored(logprobs(half, ids), ids) - scored(e, ids)).abs().max().item()
        for ids, e in zip(prompts, exact)
    )
    simulate_fp8(model)
    approximate = [logprobs(model, ids) for ids in prompts]
    kls = torch.cat([(e.exp() * (e - a)).sum(-1) for e, a in zip(exact, approximate)])
    model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    golden = {"bf16_worst": worst, "fp8_mean_kl": kls.mean().item(), "prompts": []}
    for ids, e in zip(prompts, exact):
        tokens, margins = greedy(model, ids)
        golden["prompts"].append({
            "ids": ids[0].tolist(),
            "logprobs": [round(x, 6) for x in scored(e, ids).tolist()],
            "greedy": tokens,
            "margins": margins,
        })
    rows = torch.cat(exact).contiguous()
    (folder / "logprobs.f32").write_bytes(rows.numpy().astype("<f4").tobytes())
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")
    print(name, f"bf16_worst {worst:.4f} fp8_mean_kl {golden['fp8_mean_kl']:.5f}")


def randomise(model) -> None:
    """Sets random weights that give clearly different logits, and norms that are not the identity."""
    for key, weight in model.named_parameters():
        if "norm" in key:
            base = 1.0 if "Llama" in type(model).__name__ and key.endswith("weight") else 0.0
            weight.copy_(base + 0.2 * torch.randn_like(weight))
        elif "embed" in key or "lm_head" in key:
            weight.copy_(torch.randn_like(weight) * 0.2)
        else:
            weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5)
        weight.copy_(weight.to(torch.bfloat16).to(weight.dtype))


def logprobs(model, ids):
    """Returns the log-probabilities of all tokens at every position: [positions, vocabulary]."""
    return model(ids).logits[0].float().log_softmax(-1)


def scored(rows, ids):
    """Returns the log-probability of each token after the first."""
    return rows[:-1].gather(1, ids[0, 1:, None])[:, 0]


def greedy(model, ids):
    """Returns a greedy continuation, and for each token the margin between the two largest logits."""
    tokens, margins = [], []
    for _ in range(GREEDY):
        top = model(ids).logits[0, -1].topk(2)
        tokens.append(top.indices[0].item())
        margins.append(round((top.values[0] - top.values[1]).item(), 5))
        ids = torch.cat([ids, top.indices[None, :1]], 1)
    return tokens, margins


def e4m3(x, scale):
    """Rounds to E4M3 with a scale, and returns float32."""
    return (x / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() * scale


def per_row(x):
    """Rounds to E4M3 with one scale per row."""
    scale = x.abs().amax(-1, keepdim=True) / E4M3_MAX
    return e4m3(x, torch.where(scale > 0, scale, torch.ones_like(scale)))


def simulate_fp8(model) -> None:
    """Simulates FP8 serving: quantises weights in place, and inputs, keys and values with hooks."""
    for key, module in model.named_modules():
        # The head of a reward model is not quantised.
        if key.startswith("score"):
            continue
        if isinstance(module, torch.nn.Linear) and "lm_head" not in key:
            module.weight.copy_(per_row(module.weight))
            module.register_forward_pre_hook(lambda _, inputs: (per_row(inputs[0]),))
        elif isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(torch.bfloat16).float(),))
    import transformers.models.llama.modeling_llama as llama
    import transformers.models.nemotron.modeling_nemotron as nemotron

    for source in (llama, nemotron):
        if hasattr(source, "eager_attention_forward") and not hasattr(source, "_plain_attention"):
            source._plain_attention = source.eager_attention_forward

            def attention(module, query, key, value, *args, _plain=source._plain_attention, **more):
                return _plain(module, query, e4m3(key, 1.0), e4m3(value, 1.0), *args, **more)

            source.eager_attention_forward = attention
    model.config._attn_implementation = "eager"
    if not hasattr(nemotron, "_plain_attention"):
        patch_nemotron(model)


def patch_nemotron(model) -> None:
    """Quantises keys and values in `repeat_kv`, because Nemotron's attention has no function to replace."""
    import transformers.models.nemotron.modeling_nemotron as nemotron

    if not hasattr(nemotron, "_plain_repeat"):
        nemotron._plain_repeat = nemotron.repeat_kv
        nemotron.repeat_kv = lambda x, n: nemotron._plain_repeat(e4m3(x, 1.0), n)


if __name__ == "__main__":
    main()
