"""Time of a training step and bytes saved for backward: our methods against peft's LoRA, reference forms, the floor.

    python benchmarks/step_time.py --quick
    python benchmarks/step_time.py --backbones 512x6 --methods 'multilora[rank=16,modules=5,dropout=0]' --json out.json

Everything runs interleaved in one process on the same frozen weights and rows; figures are ratios of runs of the same
round. README.md in this folder describes the protocol.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from backbones import SHAPES
from comparison import Conditions, StepComparison, StepRow
from sides import Precision

from mtlbench.api.method import Method
from mtlbench.backbones.machine import probe
from mtlbench.errors import RequestError
from mtlbench.planning.settings import build as build_method
from mtlbench.planning.settings import read_settings, split_methods
from mtlbench.plugins import offers

METHODS = (
    "lora[rank=16,dropout=0]",
    "dora[rank=16,dropout=0]",
    "adalora[init_rank=16,prune_from=0,dropout=0]",
    "multilora[rank=16,modules=3,dropout=0]",
    "mtl_lora[rank=8,ups=3,target=all,dropout=0]",
    "moelora[rank=16,experts=8,target=all,dropout=0]",
    "molora[rank=2,experts=8,dropout=0]",
    "poly[rank=2,skills=8,target=all]",
    "mhr[rank=2,skills=8,splits=4,target=all]",
    "cpoly[rank=2,common=3,target=all]",
)
"""What is measured by default, on all linears and without dropout; those that are not installed are left out."""
MORE = (
    "lora[rank=16,dropout=0.1]",
    "multilora[rank=16,modules=1,dropout=0]",
    "multilora[rank=16,modules=5,dropout=0]",
    "multilora[rank=16,modules=3,dropout=0.1]",
    "moelora[rank=16,experts=8,target=all,dropout=0,shared_gate=true]",
    "molora[rank=2,experts=8,dropout=0,gate=task]",
    "cpoly[rank=2,common=3,target=all,mix=outputs]",
    "full",
)
"""Without --quick also these."""
HEADER = (
    "| case | step / peft LoRA | labels-only logits | step / our LoRA | reference / peft LoRA (apart from ours) "
    "| MiB: peft, this, labels-only; reference | MiB / peft |\n|---|---|---|---|---|---|---|"
)


def line(row: StepRow, clock: str) -> str:
    """One row of the table."""
    mib = row.mib
    own = row.ratio("ours", "lora", clock)
    timed = ((form, row.ratio(form, "peft", clock)) for form in row.differences)
    sizes = f"{mib['peft']:.0f}, {mib['ours']:.0f}, {mib['labels']:.0f}"
    cells = (
        f"`{row.case}`" if row.lora_rank else row.case,
        row.ratio("ours", "peft", clock),
        row.ratio("labels", "peft", clock),
        own and f"{own} (r{row.lora_rank})",
        "; ".join(f"{form} {spread or ''} (apart {row.differences[form].largest:.0e})" for form, spread in timed),
        "; ".join([sizes, *(f"{form} {mib[form]:.0f}" for form in row.differences)]),
        f"{mib['ours'] / mib['peft']:.3f}",
    )
    return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"


def measure(
    backbone: str, methods: dict[str, Method], conditions: Conditions, *, clock: str
) -> tuple[list[StepRow], bool]:
    """All rows of one backbone, printed as they come; whether every reference form agreed."""
    comparison = StepComparison(backbone, conditions)
    machine = probe(conditions.device)
    print(f"\n### {backbone}: our LoRA and peft's agree to {comparison.baseline}; ", end="")
    print(f"matrix rate {machine.float32_gflops:.0f} GFLOP/s in float32, {machine.bfloat16_gflops:.0f} in bfloat16\n")
    print(HEADER, flush=True)
    rows, agreed = comparison.fixed(), True
    for row in rows:
        print(line(row, clock), flush=True)
    for word, method in methods.items():
        try:
            row = comparison.case(word, method)
        except RequestError as refused:
            print(f"| `{word}` | refused: {refused} |", flush=True)
            continue
        if not row.mib:
            agreed = False
            apart = "; ".join(f"{title}: {found}" for title, found in row.differences.items())
            print(f"| `{word}` | DIFFERS from its reference form, not timed ({apart}) |", flush=True)
            continue
        print(line(row, clock), flush=True)
        rows.append(row)
    return rows, agreed


def chosen(words: str | None, *, quick: bool) -> dict[str, Method]:
    """Methods by their words: those asked for, or the default ones that are installed."""
    asked = words is not None
    joined = words if words is not None else ",".join(METHODS if quick else METHODS + MORE)
    methods, missing = {}, []
    for name, settings in split_methods(joined):
        if not asked and name not in offers("methods"):
            missing.append(name)
            continue
        word = name + (f"[{','.join(f'{k}={v}' for k, v in settings.items())}]" if settings else "")
        methods[word] = build_method(name, read_settings(name, settings))
    if missing:
        print(f"not installed: {', '.join(dict.fromkeys(missing))}")
    return methods


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest backbone, ten methods, fewer pairs")
    parser.add_argument("--methods", help="with settings, as of `mtlbench run`; default: the tables in this file")
    parser.add_argument("--backbones", help=f"of {', '.join(SHAPES)}; default: all, 256x4 with --quick")
    parser.add_argument("--pairs", type=int, help="rounds; default 11, 4 with --quick")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    parser.add_argument("--checkpointing", action="store_true", help="all sides recompute layers in the backward")
    logits = parser.add_mutually_exclusive_group()
    logits.add_argument("--labels-only", action="store_true", help="time ours with logits at labels only")
    logits.add_argument("--all-logits", action="store_true", help="time ours with logits of all tokens only")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        help="which time the ratios are of; default: cpu for one thread of a processor, whose time others do not take",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    options.pairs = options.pairs or (4 if options.quick else 11)
    options.clock = options.clock or ("cpu" if options.device == "cpu" and options.threads == 1 else "wall")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    methods = chosen(options.methods, quick=options.quick)
    names = (options.backbones or ("256x4" if options.quick else ",".join(SHAPES))).split(",")
    unknown = [name for name in names if name not in SHAPES]
    if unknown:
        parser.error(f"unknown backbone {unknown[0]!r}; known: {', '.join(SHAPES)}")
    conditions = Conditions(
        pairs=options.pairs,
        device=torch.device(options.device),
        precision=Precision(torch.bfloat16 if options.dtype == "bfloat16" else None, options.checkpointing),
        all_logits=not options.labels_only,
        labels_only=not options.all_logits,
    )
    rows, agreed = [], True
    for name in names:
        more, same = measure(name, methods, conditions, clock=options.clock)
        rows += more
        agreed = agreed and same
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        document = {"torch": torch.__version__, "options": settings, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(document, indent=1))
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
