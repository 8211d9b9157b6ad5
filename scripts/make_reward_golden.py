#!/usr/bin/env python3
"""Makes tests/data/golden/rewards.json: reward heads after the layers of models of scripts/make_golden.py.

    python3 scripts/make_reward_golden.py            (requires torch, transformers, safetensors)

The prompts are answers to one question: they begin with the same tokens. Every case has the head's weight
and bias, and the values that transformers' `NemotronForSequenceClassification` and
`LlamaForSequenceClassification` compute for each prompt in float32. Heads with a bias, which these classes do
not have, replace the class's `score`. `fp8_mean_error` is the mean error of a value in the simulation of FP8
of make_golden.py, with the head in float32.
"""

import json

import torch
from transformers import LlamaForSequenceClassification, NemotronForSequenceClassification

from make_golden import OUT, VOCAB, simulate_fp8

CLASSES = {"nemotron": NemotronForSequenceClassification, "llama": LlamaForSequenceClassification}
HIDDEN = 64
QUESTION = 40
ANSWERS = [1, 7, 20, 33, 60, 90, 24, 25]
# Trunk, module, width, bias, labels.
CASES = [
    ("nemotron", "rm_head", 9, True, None),
    ("nemotron", "rm_head", 5, False, None),
    ("nemotron", "score", 1, False, None),
    ("llama", "score", 1, False, None),
    ("llama", "score", 5, False, ["truth", "style", "tone", "order", "length"]),
    ("llama", "score", 9, True, None),
]
# Standard deviation of the head's weights, which makes values of about 0.25 around the bias, and the number
# whose multiples they are. Such weights are exact in bfloat16 and short in JSON.
DEVIATION = 0.03
UNIT = 1 / 256


@torch.no_grad()
def main() -> None:
    torch.manual_seed(20)
    question = torch.randint(3, VOCAB, (1, QUESTION))
    prompts = [torch.cat([question, torch.randint(3, VOCAB, (1, length))], 1) for length in ANSWERS]
    heads = [make_head(width, bias) for _, _, width, bias, _ in CASES]
    # The simulation of FP8 changes functions of transformers for good, so it comes last.
    exact = [values(load(trunk, head), prompts) for (trunk, *_), head in zip(CASES, heads)]
    half = [values(load(trunk, head, torch.bfloat16), prompts) for (trunk, *_), head in zip(CASES, heads)]
    text = []
    for (trunk, module, width, bias, labels), head, exact, half in zip(CASES, heads, exact, half):
        model = load(trunk, head)
        simulate_fp8(model)
        error = (values(model, prompts) - exact).abs().mean().item()
        worst = (half - exact).abs().max().item()
        spread = exact[:, 0].std().item()
        figures = f"bfloat16 worst {worst:.5f}, FP8 mean {error:.5f}, spread {spread:.3f}"
        print(f"{trunk} {module} {width}: {figures}")
        text.append(json.dumps({
            "trunk": trunk,
            "architecture": CLASSES[trunk].__name__,
            "module": module,
            "weight": head.weight.tolist(),
            "bias": head.bias.tolist() if bias else None,
            "labels": labels,
            "fp8_mean_error": error,
            "values": [[round(x, 6) for x in row] for row in exact.tolist()],
        }))
    ids = ",\n".join(str(prompt[0].tolist()) for prompt in prompts)
    cases = ",\n".join(text)
    (OUT / "rewards.json").write_text(f'{{"prompts": [\n{ids}\n],\n"cases": [\n{cases}\n]}}\n')


def make_head(width: int, bias: bool):
    """Returns a random head whose elements are exact in bfloat16."""
    head = torch.nn.Linear(HIDDEN, width, bias=bias)
    head.weight.copy_((torch.randn_like(head.weight) * DEVIATION / UNIT).round() * UNIT)
    if bias:
        head.bias.copy_((torch.rand_like(head.bias) * 4 * 16).round() / 16)
    return head


def load(trunk: str, head, dtype=torch.float32):
    """Returns the layers of a fixture with this head, which is computed in float32."""
    model = CLASSES[trunk].from_pretrained(OUT / trunk, num_labels=head.out_features, dtype=dtype).eval()
    model.score = torch.nn.Sequential(Widened(), head)
    return model


class Widened(torch.nn.Module):
    """Converts its input to float32."""

    def forward(self, x):
        return x.float()


def values(model, prompts):
    """Returns the values of the head after each prompt: [prompts, width]."""
    return torch.stack([model(ids).logits[0] for ids in prompts])


if __name__ == "__main__":
    main()
