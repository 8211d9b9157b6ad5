#!/usr/bin/env python3
"""Writes the table and the plot of benches/README.md from the results of two comparisons.

    python3 scripts/benchmarks_page.py --engines ENGINES.json --servers SERVERS.json

The files are written by scripts/compare_engines.py and scripts/compare_servers.py with --json. The table
replaces the lines between the two marks in benches/README.md; the plot is benches/speed.svg.
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from compare_servers import number

PAGE = Path("benches/README.md")
PLOT = Path("benches/speed.svg")
BEGIN, END = "<!-- figures: scripts/benchmarks_page.py -->", "<!-- end of figures -->"

# Figures of scripts/compare_servers.py: the case, the figure, and the name in the table.
STREAMS = ["1 stream", "4 streams", "16 streams"]
SERVED = [("output tokens/s", "tokens/s"), ("TTFT, p50, ms", "TTFT p50, ms")]
SERVED += [("ITL, p50, ms", "ITL p50, ms"), ("ITL, p99, ms", "ITL p99, ms")]


@dataclass(frozen=True)
class Row:
    """Medians of a figure. `more_is_better`: of tokens per second; of times and memory, less is."""

    name: str
    octant: float
    other: float
    more_is_better: bool

    def gain(self) -> float:
        """How many times better Octant is."""
        return self.octant / self.other if self.more_is_better else self.other / self.octant


def rows(engines: dict, servers: list) -> list[Row]:
    found = []
    for case, runs in engines.items():
        medians = [statistics.median(values) for values in runs.values()]
        found.append(Row(f"engine, {case}, tokens/s", *medians, True))
    runs = list(servers[0].values())
    median = lambda of, case, figure: statistics.median(run[case][figure] for run in of)  # noqa: E731
    for case in STREAMS:
        for figure, name in SERVED:
            values = [median(of, case, figure) for of in runs]
            found.append(Row(f"server, {case}, {name}", *values, figure.endswith("/s")))
    for figure in ["first answer after start, s", "peak memory, MiB"]:
        values = [median(of, "whole run", figure) for of in runs]
        found.append(Row(f"server, {figure}", *values, False))
    return found


def table(found: list[Row]) -> str:
    lines = ["| | Octant, FP8 | llama.cpp, Q8_0 | times better |", "|---|---|---|---|"]
    for row in found:
        lines.append(f"| {row.name} | {number(row.octant)} | {number(row.other)} | {row.gain():.2f} |")
    return "\n".join(lines)


def plot(found: list[Row]) -> str:
    """A bar for each figure, as long as Octant is times better; a line at 1."""
    height, left, unit = 18, 300, 110
    most = max(row.gain() for row in found)
    width, whole = left + most * unit + 60, height * len(found) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{whole}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width:.0f}" height="{whole}" fill="white"/>',
    ]
    for index, row in enumerate(found):
        y, gain = index * height + 4, row.gain()
        colour = "#4c78a8" if gain >= 1 else "#e45756"
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(row.name)}</text>')
        parts.append(
            f'<rect x="{left}" y="{y}" width="{gain * unit:.1f}" height="{height - 4}" fill="{colour}"/>'
        )
        parts.append(f'<text x="{left + gain * unit + 5:.1f}" y="{y + 12}">{gain:.2f}</text>')
    bottom = height * len(found) + 4
    one = left + unit
    parts.append(f'<line x1="{one}" y1="0" x2="{one}" y2="{bottom}" stroke="black" stroke-dasharray="3"/>')
    parts.append(
        f'<text x="{one}" y="{bottom + 16}" text-anchor="middle">as llama.cpp; longer is better</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", type=Path, required=True, help="of scripts/compare_engines.py")
    parser.add_argument("--servers", type=Path, required=True, help="of scripts/compare_servers.py")
    args = parser.parse_args()
    found = rows(json.loads(args.engines.read_text()), json.loads(args.servers.read_text()))
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")
    PLOT.write_text(plot(found))


if __name__ == "__main__":
    main()
