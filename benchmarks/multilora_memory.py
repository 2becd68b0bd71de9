"""Bytes saved for backward by MultiLoRA with 1, 3 and 5 modules: the published loop against ours.

    python benchmarks/multilora_memory.py --chart docs/img/multilora_memory.svg

Logits of all tokens on every side. Counting takes one forward each, so there is no spread.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from backbones import SHAPES, build, make_batch
from forms import agreement, forms_of, reference_side
from sides import Precision, our_side, peft_side

from mtlbench.api.method import Value
from mtlbench.planning.settings import build as build_method

MODULES = (1, 3, 5)
RANK = 16
"""Of each module."""


def measure(backbone: str) -> dict[str, list[float]]:
    """MiB by curve, a value for each of :data:`MODULES`.

    Raises:
        RuntimeError: ours and the loop do not agree.
    """
    shape, cpu = SHAPES[backbone], torch.device("cpu")
    base, batch = build(shape), make_batch(shape, device=cpu)
    curves: dict[str, list[float]] = {}

    def add(curve: str, saved: int) -> None:
        curves.setdefault(curve, []).append(saved / 2**20)

    for modules in MODULES:
        for dropout in (0.0, 0.1):
            settings: dict[str, Value] = {"rank": RANK, "modules": modules, "dropout": dropout, "target": "all"}
            ours = our_side(base, batch, Precision(), build_method("multilora", settings))
            (form,) = forms_of(ours.method)
            loop = reference_side(ours, base, batch, Precision(), form)
            apart = agreement(ours, loop, form.move, all_logits=True)
            if not apart.largest <= 1e-4:
                raise RuntimeError(f"ours and the loop differ with {modules} modules: {apart}")
            noted = f", dropout {dropout}" if dropout else ""
            add(f"loop{noted}", loop.saved_bytes(all_logits=True))
            add(f"ours{noted}", ours.side.saved_bytes(all_logits=True))
        add(
            f"peft LoRA of rank {RANK} n",
            peft_side(base, batch, Precision(), rank=RANK * modules, dropout=0.0).saved_bytes(all_logits=True),
        )
    return curves


def table(curves: Mapping[str, Sequence[float]]) -> str:
    """A Markdown table in MiB, with the growth from the fewest modules to the most."""
    heads = ["MiB", *(f"n = {n}" for n in MODULES), "last / first"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, values in curves.items():
        cells = " | ".join(f"{value:.0f}" for value in values)
        lines.append(f"| {name} | {cells} | {values[-1] / values[0]:.2f} |")
    return "\n".join(lines)


def chart(curves: Mapping[str, Sequence[float]], *, title: str) -> str:
    """The curves as a small SVG."""
    width, height, left, bottom, top = 560, 300, 60, 260, 40
    step = next(size for size in (25, 50, 100, 200, 400) if max(map(max, curves.values())) <= 6 * size)
    colours = ("#c44e52", "#4c72b0", "#dd8452", "#55a3d9", "#777777")

    def x(n: float) -> float:
        return left + (n - MODULES[0]) / (MODULES[-1] - MODULES[0]) * 310

    def y(mib: float) -> float:
        return bottom - mib / (6 * step) * (bottom - top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="14">{title}</text>',
        '<g font-size="12">',
    ]
    for mark in range(0, 6 * step + 1, step):
        parts.append(f'<path d="M{left} {y(mark):.0f}H{x(MODULES[-1]):.0f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(mark) + 4:.0f}" text-anchor="end">{mark}</text>')
    for n in MODULES:
        parts.append(f'<text x="{x(n):.0f}" y="{bottom + 18}" text-anchor="middle">n = {n}</text>')
    shown: list[float] = []
    for colour, (name, values) in sorted(zip(colours, curves.items(), strict=True), key=lambda item: -item[1][1][-1]):
        points = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in zip(MODULES, values, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        at = max(y(values[-1]) + 4, shown[-1] + 14 if shown else 0)  # labels must not cover one another
        shown.append(at)
        parts.append(f'<text x="{x(MODULES[-1]) + 8:.0f}" y="{at:.0f}" fill="{colour}">{name}: {values[-1]:.0f}</text>')
    return "\n".join([*parts, "</g></svg>", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=tuple(SHAPES), default="512x6")
    parser.add_argument("--chart", type=Path, help="draw the curves into this SVG file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    torch.set_num_threads(1)
    curves = measure(options.backbone)
    print(table(curves))
    if options.chart:
        options.chart.parent.mkdir(parents=True, exist_ok=True)
        options.chart.write_text(chart(curves, title=f"MultiLoRA of rank {RANK} per module: MiB saved for backward"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
