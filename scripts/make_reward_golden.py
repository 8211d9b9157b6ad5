#!/usr/bin/env python3
"""Makes tests/data/golden/rewards.json: reward heads after the layers of models of scripts/make_golden.py.

    python3 scripts/make_reward_golden.py            (requires torch, transformers, safetensors)

The prompts are answers to one question: they begin with the same tokens. Every case has the head's weight
and bias, and the values that transformers' `NemotronForSequenceClassification` and
`LlamaForSequenceClassification` compute for each prompt in float32. Heads with a bias, which these classes do
not have, replace the class's `score`. Beside them are the errors from these values of transformers' own
bfloat16, mean and worst, and `fp8_mean_error`, the mean error of the simulation of FP8 of make_golden.py. The
head is in float32 in all of them. `spread` is the mean over the head's values of the standard deviation over
the prompts.
"""

import json

import torch
from transformers import LlamaForSequenceClassification, NemotronForSequenceClassification

from make_golden import OUT, VOCAB, simulate_fp8

CLASSES = {"nemotron": NemotronForSequenceClassification, "llama": LlamaForSequenceClassification}
HIDDEN = 64
QUESTION = 40
ANSWERS = [1, 7, 20, 33, 60, 90, 24, 25]
# Standard deviations of the heads' weights. Values spread by about 0.25 around the bias with the first, as
# far as the bound of 0.01 holds for bfloat16, and by about 0.4 with the second.
SMALL, LARGE = 0.03, 0.06
# The number whose multiples weights are. Such weights are exact in bfloat16 and short in JSON.
UNIT = 1 / 256
# Trunk, module, width, bias, labels, deviation.
CASES = [
    ("nemotron", "rm_head", 9, True, None, SMALL),
    ("nemotron", "rm_head", 5, False, None, SMALL),
    ("nemotron", "score", 1, False, None, SMALL),
    ("llama", "score", 1, False, None, SMALL),
    ("llama", "score", 5, False, ["truth", "style", "tone", "order", "length"], SMALL),
    ("llama", "score", 9, True, None, SMALL),
    ("nemotron", "rm_head", 9, False, None, LARGE),
    ("nemotron", "rm_head", 5, True, None, LARGE),
    ("nemotron", "rm_head", 1, True, None, LARGE),
    ("llama", "score", 1, True, None, LARGE),
    ("llama", "score", 5, True, None, LARGE),
    ("llama", "score", 9, False, None, LARGE),
]


@torch.no_grad()
def main() -> None:
    torch.manual_seed(20)
    question = torch.randint(3, VOCAB, (1, QUESTION))
    prompts = [torch.cat([question, torch.randint(3, VOCAB, (1, length))], 1) for length in ANSWERS]
    heads = [make_head(width, bias, deviation) for _, _, width, bias, _, deviation in CASES]
    # The simulation of FP8 changes functions of transformers for good, so it comes last.
    exact = [values(load(trunk, head), prompts) for (trunk, *_), head in zip(CASES, heads)]
    half = [values(load(trunk, head, torch.bfloat16), prompts) for (trunk, *_), head in zip(CASES, heads)]
    text = []
    for (trunk, module, width, bias, labels, _), head, exact, half in zip(CASES, heads, exact, half):
        model = load(trunk, head)
        simulate_fp8(model)
        error = (values(model, prompts) - exact).abs().mean().item()
        rounded = (half - exact).abs()
        spread = exact.std(0).mean().item()
        figures = f"bfloat16 mean {rounded.mean():.5f} worst {rounded.max():.5f}, FP8 mean {error:.5f}"
        print(f"{trunk} {module} {width} bias {bias}: spread {spread:.3f}, {figures}")
        text.append(json.dumps({
            "trunk": trunk,
            "architecture": CLASSES[trunk].__name__,
            "module": module,
            "weight": head.weight.tolist(),
            "bias": head.bias.tolist() if bias else None,
            "labels": labels,
            "spread": round(spread, 4),
            "bfloat16_mean_error": rounded.mean().item(),
            "bfloat16_worst_error": rounded.max().item(),
            "fp8_mean_error": error,
            "values": [[round(x, 6) for x in row] for row in exact.tolist()],
        }))
    ids = ",\n".join(str(prompt[0].tolist()) for prompt in prompts)
    cases = ",\n".join(text)
    (OUT / "rewards.json").write_text(f'{{"prompts": [\n{ids}\n],\n"cases": [\n{cases}\n]}}\n')


def make_head(width: int, bias: bool, deviation: float):
    """Returns a random head whose elements are exact in bfloat16."""
    head = torch.nn.Linear(HIDDEN, width, bias=bias)
    head.weight.copy_((torch.randn_like(head.weight) * deviation / UNIT).round() * UNIT)
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
