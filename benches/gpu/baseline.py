#!/usr/bin/env python3
"""One rank's decode and prefill steps in PyTorch, to compare with `octant bench rank` on the same GPU.

    python3 benches/gpu/baseline.py --config models/nemotron-4-340b-instruct --tp 8 [--layers N] [--device D]

The same layers with the same shapes and random weights: LayerNorm with weight + 1, dynamic quantisation per
token, FP8 products with a scale per row and per output (torch._scaled_mm), rotary embedding of half of each
head, attention by scaled_dot_product_attention over a static BF16 cache, squared ReLU. A decode step is one
CUDA graph. Communication between ranks is left out, as in `octant bench rank`. On a CPU weights are BF16,
since it has no FP8 products; such a run only checks the script.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F

E4M3 = torch.float8_e4m3fn


class Linear:
    """out = x · wᵀ, E4M3 with a scale per row of either."""

    def __init__(self, out: int, inner: int, device: torch.device):
        weight = torch.randn(out, inner, device=device, dtype=torch.bfloat16) / inner**0.5
        self.fp8 = device.type == "cuda"
        if self.fp8:
            scale = weight.abs().amax(1, keepdim=True).float() / 448
            self.weight = (weight.float() / scale).to(E4M3).t()
            self.scale = scale.t().contiguous()
        else:
            self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self.fp8:
            return F.linear(x, self.weight)
        scale = x.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / 448
        codes = (x.float() / scale).to(E4M3)
        return torch._scaled_mm(
            codes,
            self.weight,
            scale_a=scale,
            scale_b=self.scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )


class Layer:
    def __init__(self, c: dict, device: torch.device):
        hidden, heads = c["hidden"], (c["q"] + 2 * c["kv"]) * c["dim"]
        self.c = c
        self.norms = [(torch.ones(hidden, device=device, dtype=torch.bfloat16),) * 2 for _ in range(2)]
        self.qkv, self.o = Linear(heads, hidden, device), Linear(hidden, c["q"] * c["dim"], device)
        self.up, self.down = Linear(c["ffn"], hidden, device), Linear(hidden, c["ffn"], device)

    def norm(self, x: torch.Tensor, which: int) -> torch.Tensor:
        weight, bias = self.norms[which]
        return F.layer_norm(x, (self.c["hidden"],), weight + 1, bias, 1e-5)

    def __call__(self, x: torch.Tensor, rotation: torch.Tensor, cache: tuple | None) -> torch.Tensor:
        """x [rows, hidden]; `rotation` [rows, dim / 2], cosines and sines; for decode `cache`, K and V
        [rows, kv, context, dim]."""
        c, rows = self.c, x.shape[0]
        qkv = self.qkv(self.norm(x, 0)).view(rows, c["q"] + 2 * c["kv"], c["dim"])
        qk, v = qkv.split([c["q"] + c["kv"], c["kv"]], 1)
        half = rotation.shape[-1] // 2
        a, b = qk[..., :half], qk[..., half : 2 * half]
        cos, sin = rotation[:, None, :half], rotation[:, None, half:]
        qk = torch.cat([a * cos - b * sin, b * cos + a * sin, qk[..., 2 * half :]], -1)
        q, k = qk.split([c["q"], c["kv"]], 1)
        if cache is None:
            q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
        else:
            cache[0][:, :, -1], cache[1][:, :, -1] = k, v
            out = F.scaled_dot_product_attention(q[:, :, None], *cache, enable_gqa=True)[:, :, 0]
        x = x + self.o(out.reshape(rows, -1))
        return x + self.down(F.relu(self.up(self.norm(x, 1))).square())


def read(directory: str, tp: int, layers: int | None) -> dict:
    raw = json.loads((Path(directory) / "config.json").read_text())
    heads = raw["num_attention_heads"]
    return {
        "layers": layers or raw["num_hidden_layers"],
        "hidden": raw["hidden_size"],
        "q": heads // tp,
        "kv": max(raw.get("num_key_value_heads", heads) // tp, 1),
        "dim": raw.get("head_dim") or raw["hidden_size"] // heads,
        "ffn": raw["intermediate_size"] // tp,
        "vocab": raw["vocab_size"] // tp,
    }


def timed(step, device: torch.device, reps: int) -> float:
    """The median duration of a step in milliseconds; on a GPU that of a captured graph."""
    for _ in range(3):
        step()
    if device.type != "cuda":
        times = []
        for _ in range(reps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2] * 1e3
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for _ in range(reps):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", default="1,8,32,64")
    parser.add_argument("--context", default="512,2048")
    parser.add_argument("--prefill", default="512,2048")
    parser.add_argument("--reps", type=int, default=50)
    args = parser.parse_args()
    device, c = torch.device(args.device), read(args.config, args.tp, args.layers)
    layers = [Layer(c, device) for _ in range(c["layers"])]
    head = torch.randn(c["vocab"], c["hidden"], device=device, dtype=torch.bfloat16)
    numbers = lambda text: [int(n) for n in text.split(",") if n]
    for context in numbers(args.context):
        for batch in numbers(args.batch):
            x = torch.randn(batch, c["hidden"], device=device, dtype=torch.bfloat16)
            rotation = torch.randn(batch, c["dim"] // 2, device=device, dtype=torch.bfloat16)
            # All layers share one layer's cache: far larger than L2, or small compared with the weights.
            shape = (batch, c["kv"], context, c["dim"])
            cache = tuple(torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))

            def step() -> None:
                y = x
                for layer in layers:
                    y = layer(y, rotation, cache)
                F.linear(y, head).argmax(-1)

            ms = timed(step, device, args.reps)
            print(f"torch decode  batch {batch:3} context {context:5}: {ms:9.3f} ms")
    for tokens in numbers(args.prefill):
        x = torch.randn(tokens, c["hidden"], device=device, dtype=torch.bfloat16)
        rotation = torch.randn(tokens, c["dim"] // 2, device=device, dtype=torch.bfloat16)

        def step() -> None:
            y = x
            for layer in layers:
                y = layer(y, rotation, None)
            F.linear(y[-1:], head).argmax(-1)

        print(f"torch prefill {tokens:5} tokens: {timed(step, device, max(args.reps // 10, 3)):9.3f} ms")


if __name__ == "__main__":
    main()
