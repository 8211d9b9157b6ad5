#!/usr/bin/env python3
"""Counts the instructions of the kernels by nvdisasm, and writes kernels/sass_counts.md.

    cargo build --features cuda
    python3 -m pip install --target .cuda/nvdisasm nvidia-cuda-nvdisasm==13.5.37    # unless a toolkit has it
    python3 scripts/sass_counts.py [FOLDER]

FOLDER has the cubins and compiled.txt of a build; by default it is the output folder of the newest build
below target. nvdisasm is looked for in CUDA_HOME, in PATH and in .cuda.

The script also fails if nvdisasm and the build read the cubins differently: if an instruction has one of the
encodings of kernels/compiled.rs and another name or number of columns, or if compiled.txt has other counts.

The second table of the file is arithmetic: how many times shared memory is accessed for one instruction of a
warp, by the addresses of its lanes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READER = ROOT / "kernels" / "compiled.rs"
PAGE = ROOT / "kernels" / "sass_counts.md"

# Kernels that are not part of a step.
OTHERS = {"random_weights", "stream_read"}
# The columns of the table, by the first word of the instruction's name.
COLUMNS = ["QGMMA", "HGMMA", "FADD", "FMUL", "FFMA", "MUFU", "F2FP", "FMNMX"]
COLUMNS += ["LDS", "STS", "SHFL", "LDG", "STG", "UBLKCP", "SYNCS", "BAR"]
PRODUCTS = ("QGMMA", "HGMMA")
# The operations whose encodings kernels/compiled.rs has.
NAMES = (*PRODUCTS, "LDL", "STL", "ACQBULK", "UBLKPF")

SECTION = re.compile(r"^\.text\.octant_(\w+):")
INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?(?P<name>[A-Z][\w.]*).*"
    r"/\* 0x(?P<word>[0-9a-f]{16}) \*/$"
)


@dataclass
class Kernel:
    """The instructions of a kernel: how many of each name, and of each shape of products."""

    name: str
    names: Counter = field(default_factory=Counter)
    shapes: Counter = field(default_factory=Counter)
    all: int = 0

    def row(self) -> str:
        """The kernel's row in the table."""
        cells = [f"{self.names[column]:,}" if self.names[column] else "" for column in COLUMNS]
        return f"| {self.name} | {self.all:,} | " + " | ".join(cells) + " |"


@dataclass(frozen=True)
class Encodings:
    """What kernels/compiled.rs knows of encodings."""

    mask: int
    operations: dict[int, str]
    shift: int
    columns: int

    @classmethod
    def read(cls) -> "Encodings":
        """Reads the constants of kernels/compiled.rs."""
        text = READER.read_text()

        def constant(name: str) -> int:
            found = re.search(rf"^const {name}: u\d+ = (\w+);", text, re.MULTILINE)
            if found is None:
                sys.exit(f"{READER} has no constant {name}")
            return int(found[1], 0)

        operations = {constant(name): name for name in NAMES}
        return cls(constant("OPERATION"), operations, constant("COLUMNS_SHIFT"), constant("COLUMNS_MASK"))

    def check(self, name: str, word: int) -> None:
        """Exits if these encodings and nvdisasm disagree on an instruction."""
        first = name.split(".")[0]
        operation = self.operations.get(word & self.mask)
        if operation != (first if first in self.operations.values() else None):
            sys.exit(f"{word:#018x}: nvdisasm reads {name}, kernels/compiled.rs {operation}")
        columns = ((word >> self.shift & self.columns) + 1) * 8
        if first in PRODUCTS and not name.startswith(f"{first}.64x{columns}x"):
            sys.exit(f"{word:#018x}: nvdisasm reads {name}, kernels/compiled.rs 64x{columns}")


def nvdisasm() -> Path:
    """The program, of a toolkit or of NVIDIA's Python package."""
    home = os.environ.get("CUDA_HOME")
    folders = [Path(home) / "bin"] if home else []
    on_path = shutil.which("nvdisasm")
    folders += [Path(on_path).parent] if on_path else []
    folders.append(ROOT / ".cuda" / "nvdisasm" / "nvidia" / "cu13" / "bin")
    for folder in folders:
        if (folder / "nvdisasm").is_file():
            return folder / "nvdisasm"
    sys.exit("no nvdisasm in CUDA_HOME, in PATH or in .cuda; the head of this script says how to install it")


def disassemble(program: Path, cubin: Path, encodings: Encodings) -> list[Kernel]:
    """The kernels of a cubin."""
    text = subprocess.run([program, "-c", "-hex", cubin], check=True, capture_output=True, text=True).stdout
    kernels: list[Kernel] = []
    for line in text.splitlines():
        if section := SECTION.match(line):
            kernels.append(Kernel(section[1]))
        elif kernels and (found := INSTRUCTION.match(line)):
            encodings.check(found["name"], int(found["word"], 16))
            parts = found["name"].split(".")
            kernels[-1].all += 1
            kernels[-1].names[parts[0]] += 1
            if parts[0] in PRODUCTS:
                shape = parts[1].rsplit("x", 1)[0]
                kernels[-1].shapes[f"{parts[0]}.{shape}"] += 1
    return kernels


def compare(kernels: list[Kernel], folder: Path) -> str:
    """Exits if the build counted otherwise. Returns the compiler's version."""
    lines = (folder / "compiled.txt").read_text().splitlines()
    compiler, *rows = [line for line in lines if not line.startswith("#")]
    by_name = {kernel.name: kernel for kernel in kernels}
    if len(rows) != len(kernels):
        sys.exit(f"{folder}/compiled.txt has {len(rows)} kernels, the cubins have {len(kernels)}")
    for row in rows:
        name, _, _, local, reads, *products = row.split()
        kernel = by_name[name]
        counted = [f"{count}*{shape}" for shape, count in sorted(kernel.shapes.items())]
        accesses_of_local = kernel.names["LDL"] + kernel.names["STL"]
        if (products, int(local), int(reads)) != (counted, accesses_of_local, kernel.names["UBLKPF"]):
            sys.exit(
                f"the build counted `{row}`; nvdisasm has {accesses_of_local} LDL and STL, "
                f"{kernel.names['UBLKPF']} UBLKPF, {counted}"
            )
    return compiler.removeprefix("compiler ")


def passes(address: Callable[[int], int], width: int) -> int:
    """How many times shared memory is accessed for the lanes of a warp. `address` is a lane's byte.

    Lanes of 8 bytes are served by halves of a warp, lanes of 16 by quarters. Words of one bank take one
    access each.
    """
    lanes = 32 * 4 // max(width, 4)
    total = 0
    for first in range(0, 32, lanes):
        banks: dict[int, set[int]] = {}
        for lane in range(first, first + lanes):
            for byte in range(address(lane), address(lane) + width, 4):
                banks.setdefault(byte // 4 % 32, set()).add(byte // 4)
        total += max(len(words) for words in banks.values())
    return total


def fragment(row_bytes: int, exchanged: int, half: int, bf16: bool) -> Callable[[int], int]:
    """`load_fragments` of kernels/attention.cuh: 16 bytes of row g at column c of a block of K or V."""

    def address(lane: int) -> int:
        g, c = lane // 4, lane % 4
        flip = g % 2 * exchanged
        if bf16:
            return g * row_bytes + c * 32 + (half * 16 ^ flip)
        return g * row_bytes + (c * 16 ^ flip)

    return address


def swizzled(byte: int) -> int:
    """`swizzled` of kernels/wgmma.cuh."""
    return byte ^ (byte >> 3 & 0x70)


def accesses() -> list[tuple[str, int, Callable[[int], int]]]:
    """What is accessed, bytes of a lane, and the address of each lane, as in the kernels."""
    g, c = (lambda lane: lane // 4), (lambda lane: lane % 4)
    found = [
        ("linear: outputs that warps exchange, stored", 4, lambda lane: 4 * (g(lane) * 36 + c(lane))),
        ("the same, loaded", 16, lambda lane: lane // 8 * 4 * 36 + lane % 8 * 16),
        ("linear: E4M3 weights that are widened", 2, lambda lane: swizzled(g(lane) * 128 + 2 * c(lane))),
        ("rows: eight elements, lower or upper half first", 16, lambda lane: lane * 32 + lane // 4 % 2 * 16),
        ("norms: weights that have been copied", 16, lambda lane: lane * 32),
        ("attention: P stored", 4, lambda lane: 2 * c(lane) * 128 + (g(lane) * 4 ^ 2 * c(lane) * 16)),
        ("attention: maxima of rows", 8, lambda lane: 4 * (c(lane) * 2)),
    ]
    for dim in (64, 128, 192):
        exchanged = 64 if dim % 128 == 0 else 0
        found.append((f"attention: K of E4M3, heads of {dim}", 16, fragment(dim, exchanged, 0, False)))
        found.append((f"attention: K of BF16, heads of {dim}", 16, fragment(2 * dim, 16, 0, True)))
    found.append(("attention: V of E4M3", 16, fragment(64, 0, 0, False)))
    found.append(("attention: V of BF16", 16, fragment(128, 16, 0, True)))

    def query(lane: int) -> int:
        d = lane * 4
        return d // 64 * 6144 + swizzled(d % 16 // 4 * 32 + d % 64 // 16 * 4)

    found.append(("attention: Q stored, a warp that stores one row", 4, query))
    return found


def page(kernels: list[Kernel], compiler: str, disassembler: str) -> str:
    """The text of kernels/sass_counts.md."""
    lines = ["# Instructions of the kernels", ""]
    lines += [f"Written by `scripts/sass_counts.py`: nvcc {compiler} for sm_90a, nvdisasm {disassembler}."]
    lines += ["`compiled.txt` has registers, shared memory and products, which the build checks."]
    lines += ["`README.md` has the arithmetic. Counts are of the whole kernel, each loop once. Kernels of"]
    lines += ["benchmarks alone (`random_weights`, `stream_read`) are left out.", ""]
    lines += ["| kernel | all | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    kernels = sorted(kernels, key=lambda kernel: kernel.name)
    lines += [kernel.row() for kernel in kernels if kernel.name not in OTHERS]
    lines += ["", "Accesses of shared memory for one instruction of a warp. The least is 1 for lanes of at"]
    lines += ["most 4 bytes, 2 for 8 and 4 for 16; more are bank conflicts.", ""]
    lines += ["| | bytes of a lane | accesses | least |", "|---|---|---|---|"]
    for name, width, address in accesses():
        lines.append(f"| {name} | {width} | {passes(address, width)} | {max(width // 4, 1)} |")
    return "\n".join(lines) + "\n"


def newest_build() -> Path:
    """The output folder of the newest build with the feature `cuda`."""
    found = list(ROOT.glob("target/*/build/octant-*/out/compiled.txt"))
    if not found:
        sys.exit("no build with --features cuda below target")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path, nargs="?", help="with the cubins and compiled.txt of a build")
    folder = parser.parse_args().folder or newest_build()
    program, encodings = nvdisasm(), Encodings.read()
    cubins = sorted(folder.glob("*.cubin"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda cubin: disassemble(program, cubin, encodings), cubins)
        kernels = [kernel for file in found for kernel in file]
    compiler = compare(kernels, folder)
    text = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    version = re.search(r", V([\d.]+)", text)
    PAGE.write_text(page(kernels, compiler, version[1] if version else "of unknown version"))
    print(f"{len(kernels)} kernels; the build and nvdisasm agree; {PAGE.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
