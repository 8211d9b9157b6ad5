#!/usr/bin/env python3
"""Tables of the kernels of a step, without sums between ranks, from the log of benches/gpu/run: one for each
of its parts `ncu` and `ncu-fastest`.

    python3 benches/gpu/kernel_table.py LOG --config models/nemotron-4-340b-instruct --tp 8 \\
        --context 2048 [--hardware models/h100-80gb.toml] [--read BYTES_PER_SECOND]

LOG has the CSV that Nsight Compute prints for each run, among any other lines. Launches are divided into
steps at each launch of `embed`; only steps that compute logits count, and of several steps of one kind and
number of rows the last two, as in those parts. A row of a table has the median time of a kernel's launches,
its bytes and FLOP by the kernel's COST line at these shapes, the floor that follows from the GPU's rates, and
how many times the floor the kernel takes. `--read` replaces the rate of memory of the GPU's file, by a
measured one.

Where cuBLASLt computes a product, the launches around its own kernel are shown: `unpack` of the weights and
of the inputs, and `rescale`. Steps with such launches are listed separately. They are named after the
product if their grids are those of its shape; otherwise they have no name and no bytes.
"""

import argparse
import csv
import json
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "octant_"
# Steps of one kind that count: the timed ones of the part.
STEPS = 2
# The products of a layer, in their order.
PRODUCTS = ["linear QKV", "linear attention output", "linear MLP up", "linear MLP down"]
# Positions of an item of attention.
SPLIT = 256
# The launches of a product by cuBLASLt, without the library's own.
LIBRARY = ["unpack", "unpack", "rescale"]
# The largest grid of `unpack`, threads of a block, and outputs per block of `rescale`, in
# src/device/cuda/cublaslt_linear.rs.
UNPACK_BLOCKS, THREADS, RESCALED = 1056, 256, 2048
GPU = Path("models/h100-80gb.toml")

TIMES = {"nsecond": 1e-9, "ns": 1e-9, "usecond": 1e-6, "us": 1e-6, "msecond": 1e-3, "ms": 1e-3}
TIMES |= {"second": 1.0, "s": 1.0}
SIZES = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
DURATION, READ = "gpu__time_duration.sum", "dram__bytes_read.sum"


@dataclass
class Launch:
    """A launch of a kernel: its blocks along x and y, its time, and the bytes that it read from memory."""

    kernel: str
    blocks: int
    blocks_y: int = 1
    seconds: float = 0.0
    read: float = 0.0


@dataclass(frozen=True)
class Shapes:
    """One rank's share of a model."""

    hidden: int
    q: int
    kv: int
    dim: int
    ffn: int
    gated: bool
    vocab: int

    @classmethod
    def read(cls, folder: Path, tp: int) -> "Shapes":
        """Reads config.json, for one of `tp` ranks."""
        raw = json.loads((folder / "config.json").read_text())
        heads = raw["num_attention_heads"]
        return cls(
            hidden=raw["hidden_size"],
            q=heads // tp,
            kv=max(raw.get("num_key_value_heads", heads) // tp, 1),
            dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            ffn=raw["intermediate_size"] // tp,
            gated=raw.get("hidden_act") == "silu",
            vocab=raw["vocab_size"] // tp,
        )


@dataclass(frozen=True)
class Step:
    """A kind of step: decode or prefill, its rows, rows with logits, positions before its rows, and whether
    cuBLASLt computes products.
    """

    prefill: bool
    rows: int
    logits: int
    context: int
    library: bool = False

    def pairs(self) -> int:
        """Pairs of a row and a position that it attends to."""
        return self.rows * (self.rows + 1) // 2 if self.prefill else self.rows * self.context

    def entries(self) -> int:
        """Sums of attention that are combined."""
        return self.rows if self.prefill else self.rows * -(-self.context // SPLIT)


@dataclass(frozen=True)
class Cost:
    """What a launch must move and compute: bytes of memory, and FLOP of the rate that `kind` names."""

    bytes: float
    flop: float = 0.0
    kind: str = "products"


def linear(rows: int, out: int, inner: int, weight: int = 1, inputs: int = 1, result: int = 2) -> Cost:
    """linear.cu; `weight`, `inputs` and `result` are bytes of an element of each."""
    scales = 4 * (out * (weight == 1) + rows * (inputs == 1))
    moved = (out * weight + rows * inputs) * inner + rows * out * result + scales
    # The rate of BF16 products is that of F16, which attention has.
    return Cost(moved, 2.0 * rows * out * inner, "products" if inputs == 1 else "attention")


def products(s: Shapes) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the products of a layer."""
    qkv, up = (s.q + 2 * s.kv) * s.dim, s.ffn * (2 if s.gated else 1)
    shapes = [(qkv, s.hidden), (s.hidden, s.q * s.dim), (up, s.hidden), (s.hidden, s.ffn)]
    return dict(zip(PRODUCTS, shapes, strict=True))


def around(product: str) -> list[str]:
    """The names of the launches of LIBRARY for a product."""
    name = product.removeprefix("linear ")
    return [f"unpack weights, {name}", f"unpack inputs, {name}", f"rescale, {name}"]


def library_costs(shapes: Shapes, rows: int) -> dict[str, Cost]:
    """The COST lines of unpack.cu and rescale.cu for the products of a layer."""
    found = {}
    for product, (out, inner) in products(shapes).items():
        costs = [Cost(2 * out * inner), Cost(2 * rows * inner), Cost(4 * rows * out)]
        found |= dict(zip(around(product), costs, strict=True))
    return found


def costs(s: Shapes, step: Step, head_bytes: int) -> dict[str, Cost]:
    """The COST lines of the kernels, in FP8 with an E4M3 cache and BF16 between kernels."""
    rows = step.rows
    layer = {name: linear(rows, out, inner) for name, (out, inner) in products(s).items()}
    qkv, up = (products(s)[name][0] for name in ("linear QKV", "linear MLP up"))
    attended = 4.0 * s.dim * s.q * step.pairs()
    # A prompt's keys and values are read once; the rows of a step of decode have one cache each.
    cached = (rows if step.prefill else step.pairs()) * s.kv * 2 * s.dim
    return layer | library_costs(s, rows) | {
        "embed": Cost(rows * s.hidden * (4 + 2)),
        "norm": Cost(rows * s.hidden * (4 + 2 + 4 + 1) + 8 * s.hidden),
        "norm before the head": Cost(step.logits * s.hidden * (4 + 2) + 8 * s.hidden),
        "rope": Cost(rows * (qkv * 2 + s.q * s.dim * 4 + 2 * s.kv * s.dim)),
        "attention_decode": Cost(cached, attended, "attention"),
        "attention_prefill": Cost(cached, attended, "attention"),
        "attention_combine": Cost(step.entries() * s.q * (s.dim + 2) * 4 + rows * s.q * s.dim),
        "activation": Cost(rows * (2 * up + s.ffn)),
        "activation_quantise": Cost(rows * (2 * up + s.ffn + up / 16)),
        "select": Cost(step.logits * s.hidden * 8),
        "linear head": linear(step.logits, s.vocab, s.hidden, head_bytes, 2, 4),
        "sample": Cost(step.logits * s.vocab * 4),
    }


@dataclass
class Run:
    """A run of Nsight Compute: the part of benches/gpu/run, and the lines of its CSV."""

    part: str
    lines: list[str]


def runs_of(lines: Iterator[str]) -> list[Run]:
    """The runs of a log.

    Raises ValueError if there is none.
    """
    found: list[Run] = []
    part = "ncu"
    for line in lines:
        if heading := re.match(r"== (\S+), at most", line):
            part = heading[1]
        elif line.startswith('"ID"'):
            found.append(Run(part, [line]))
        elif line.startswith('"') and found:
            found[-1].lines.append(line)
    if not found:
        raise ValueError('no line begins with "ID": the log has no CSV of Nsight Compute')
    return found


def launches(lines: list[str]) -> list[Launch]:
    """The launches of one run's CSV, in the order of their ids.

    Raises ValueError if a value has an unknown unit.
    """
    found: dict[int, Launch] = {}
    for row in csv.DictReader(lines):
        name, unit = row["Metric Name"], row["Metric Unit"]
        if not row["Kernel Name"].startswith(PREFIX) or name not in (DURATION, READ):
            continue
        units = TIMES if name == DURATION else SIZES
        if unit not in units:
            raise ValueError(f"{name} has the unit {unit!r}; expected one of {', '.join(units)}")
        kernel = row["Kernel Name"].removeprefix(PREFIX).split("(")[0]
        x, y = [int(blocks) for blocks in (*re.findall(r"\d+", row["Grid Size"]), 0, 0)[:2]]
        launch = found.setdefault(int(row["ID"]), Launch(kernel, x, y))
        value = float(row["Metric Value"].replace(",", "")) * units[unit]
        if name == DURATION:
            launch.seconds = value
        else:
            launch.read = value
    return [found[number] for number in sorted(found)]


@dataclass
class Timed:
    """The launches of a step, and its kind."""

    step: Step
    head_bytes: int
    launches: list[tuple[str, Launch]] = field(default_factory=list)


def grids(rows: int, out: int, inner: int) -> list[tuple[int, int]]:
    """The grids of the launches of LIBRARY for a product."""
    unpack = [(min(UNPACK_BLOCKS, -(-(count * inner // 16) // THREADS)), 1) for count in (out, rows)]
    return [*unpack, (rows, -(-out // RESCALED))]


def groups(part: list[Launch]) -> list[list[Launch]]:
    """The launches of a step, with those of a product together.

    A product of many rows may take several launches of `linear`; other kernels stand between two products.
    """
    found: list[list[Launch]] = []
    for i, launch in enumerate(part):
        is_linear = launch.kernel.startswith("linear_")
        if is_linear and i > 0 and part[i - 1].kernel.startswith("linear_"):
            found[-1].append(launch)
        elif kernels_of(found[-2:] + [[launch]]) == LIBRARY:
            found[-2:] = [[*found[-2], *found[-1], launch]]
        else:
            found.append([launch])
    return found


def kernels_of(launches_of_groups: list[list[Launch]]) -> list[str]:
    """The kernels of all launches of groups."""
    return [launch.kernel for group in launches_of_groups for launch in group]


def is_product(group: list[Launch]) -> bool:
    """Whether launches are those of a product."""
    return group[0].kernel.startswith("linear_") or kernels_of([group]) == LIBRARY


def product_names(group: list[Launch], product: str, rows: int, shapes: Shapes) -> list[str]:
    """The names of the launches of a product; the kernels' names if the grids are not of its shape."""
    if group[0].kernel.startswith("linear_"):
        return [product]
    same = [(launch.blocks, launch.blocks_y) for launch in group] == grids(rows, *products(shapes)[product])
    return around(product) if same else kernels_of([group])


def other_name(kernel: str, after_select: bool) -> str:
    """The name of a kernel that computes no product."""
    if kernel == "norm" and after_select:
        return "norm before the head"
    return re.sub(r"^(attention_\w+?)_(e4m3|bf16)_\d+$", r"\1", kernel)


def named(part: list[Launch], shapes: Shapes) -> list[tuple[str, Launch]]:
    """The launches of a step with their names in the table.

    Products are named by their order. If they are not those of whole layers, they keep the kernels' names.
    """
    found: list[tuple[str, Launch]] = []
    of_step = groups(part)
    select = next(i for i, group in enumerate(of_step) if group[0].kernel == "select")
    whole = sum(map(is_product, of_step[:select])) % len(PRODUCTS) == 0
    before = 0
    for i, group in enumerate(of_step):
        if not is_product(group):
            names = [other_name(group[0].kernel, i > select)]
        elif i > select and len(group) == 1:
            names = ["linear head"]
        elif i < select and whole:
            names = product_names(group, PRODUCTS[before % len(PRODUCTS)], part[0].blocks, shapes)
            before += 1
        else:
            names = kernels_of([group])
        found += zip(names, group if len(names) == len(group) else [total(group)], strict=True)
    return found


def total(group: list[Launch]) -> Launch:
    """The launches of a product as one."""
    seconds, read = sum(launch.seconds for launch in group), sum(launch.read for launch in group)
    return Launch(group[0].kernel, group[0].blocks, group[0].blocks_y, seconds, read)


def steps(launches_of_run: list[Launch], context: int, shapes: Shapes) -> list[Timed]:
    """The steps of a run that compute logits."""
    found = []
    starts = [i for i, launch in enumerate(launches_of_run) if launch.kernel == "embed"]
    for start, end in zip(starts, [*starts[1:], len(launches_of_run)]):
        part = launches_of_run[start:end]
        select = next((i for i, launch in enumerate(part) if launch.kernel == "select"), None)
        if select is None:
            continue
        prefill = any(launch.kernel.startswith("attention_prefill") for launch in part)
        library = any(launch.kernel in LIBRARY for launch in part)
        head = next((launch for launch in part[select:] if launch.kernel.startswith("linear_")), None)
        kind = Step(prefill, part[0].blocks, part[select].blocks, 0 if prefill else context, library)
        head_bytes = 2 if head and head.kernel.startswith("linear_bf16") else 1
        found.append(Timed(kind, head_bytes, named(part, shapes)))
    return found


def table(found: list[Timed], shapes: Shapes, rates: dict[str, float]) -> Iterator[str]:
    """The lines of the table."""
    yield "| step | kernel | launches | µs | MB | GFLOP | floor µs | times | MB read from memory |"
    yield "|---|---|---|---|---|---|---|---|---|"
    kinds = sorted({timed.step for timed in found}, key=lambda step: (step.prefill, step.library, step.rows))
    for kind in kinds:
        # Earlier steps of the kind are starts of sequences and warm-up.
        last = [timed for timed in found if timed.step == kind][-STEPS:]
        known = costs(shapes, kind, last[-1].head_bytes)
        names = list(dict.fromkeys(name for timed in last for name, _ in timed.launches))
        for name in names:
            of_name = [launch for timed in last for other, launch in timed.launches if other == name]
            seconds = statistics.median(launch.seconds for launch in of_name)
            read = statistics.median(launch.read for launch in of_name)
            step = f"{'prefill' if kind.prefill else 'decode'} {kind.rows}"
            step += " cuBLASLt" if kind.library else ""
            row = f"| {step} | {name} | {len(of_name) // len(last)} | {seconds * 1e6:.1f} |"
            cost = known.get(name)
            if cost is None:
                yield f"{row} – | – | – | – | {read / 1e6:.2f} |"
                continue
            floor = max(cost.bytes / rates["read"], cost.flop / rates[cost.kind])
            yield (
                f"{row} {cost.bytes / 1e6:.2f} | {cost.flop / 1e9:.2f} | {floor * 1e6:.2f} | "
                f"{seconds / floor:.2f} | {read / 1e6:.2f} |"
            )


def rates_of(path: Path) -> dict[str, float]:
    """Bytes per second of memory, and FLOP per second of both kinds of products, from the file of a GPU.

    Raises ValueError if the file lacks one.
    """
    rates = {}
    for name in ("read", "products", "attention"):
        found = re.search(rf"^{name} = (\S+)$", path.read_text(), re.MULTILINE)
        if found is None:
            raise ValueError(f"{path} has no line `{name} = ...`")
        rates[name] = float(found[1])
    return rates


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("log", type=Path, help="with the CSV of Nsight Compute")
    parser.add_argument("--config", type=Path, required=True, help="folder of config.json")
    parser.add_argument("--tp", type=int, required=True, help="ranks that share the model")
    parser.add_argument("--context", type=int, required=True, help="positions before a row of decode")
    parser.add_argument("--hardware", type=Path, default=GPU, help="file of the GPU's rates")
    parser.add_argument("--read", type=float, help="bytes per second that the GPU reads")
    o = parser.parse_args()
    try:
        rates = rates_of(o.hardware)
        rates["read"] = o.read or rates["read"]
        with o.log.open() as log:
            shapes = Shapes.read(o.config, o.tp)
            found = {run.part: steps(launches(run.lines), o.context, shapes) for run in runs_of(log)}
    except ValueError as error:
        sys.exit(str(error))
    if not any(found.values()):
        sys.exit(f"{o.log}: no step with logits among the launches")
    for part, timed in found.items():
        lines = table(timed, shapes, rates) if timed else ["no step with logits among the launches"]
        print(f"## {part}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
