"""Examples per second of the whole training loop: ours against loops that a user would write or start.

    python benchmarks/training_loop.py --quick
    python benchmarks/training_loop.py --json out.json

All train LoRA of rank 16 on every linear on the same frozen weights and rows, without dropout or logging. Ours is the
loop as `mtlbench run` drives it, each step a draw of the mixture. README.md in this folder describes the sides.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from backbones import TASKS, BackboneShape, build
from forms import Agreement, agreement, as_peft, pour
from loops import BATCH, Pass, Slots, TrainerSide, as_examples, bare_loop, our_loop, trainer_loop
from sides import Precision, our_side, peft_lora
from timing import Quartiles, Taken, interleaved, ratio, spread
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.backbones.machine import probe
from mtlbench.planning.settings import build as build_method
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import collate

LENGTHS = ((0.0, 10), (0.25, 34), (0.5, 55), (0.75, 96), (0.95, 190), (0.975, 256), (1.0, 256))
"""Quantiles of the lengths of GLUE-like rows, in tokens: mean 76, median 55, 95th percentile 190, cut at 256."""
SHAPES = {
    "512x6-8k": BackboneShape(512, 6),
    "256x4-8k": BackboneShape(256, 4),
    "256x4-32k": BackboneShape(256, 4, vocabulary=32_000),
    "135m": BackboneShape(576, 30, vocabulary=49_152),
    "135m-bf16": BackboneShape(576, 30, vocabulary=49_152),
}
"""The last two have the shape of SmolLM2-135M but for its grouped queries, with random weights."""
SIDES = {
    "sorted": "(d) a bare loop with peft, logits at labels only, batches sorted by length over the whole pass",
    "drawn": "(c) the same with random batches",
    "grouped": "(b) the Trainer with train_sampling_strategy='group_by_length'",
    "trainer": "(a) the Trainer as it comes",
}


def glue_like_rows(count: int, *, vocabulary: int, seed: int = 0) -> list[TokenRow]:
    """Rows of random tokens with the quantiles of :data:`LENGTHS` and two answer tokens, in random order."""
    random = np.random.default_rng(seed)
    at, tokens = zip(*LENGTHS, strict=True)
    lengths = np.interp((np.arange(count) + 0.5) / count, at, tokens).round().astype(int)
    random.shuffle(lengths)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(random.integers(3, vocabulary, length).tolist())

    return [TokenRow(i % TASKS, draw(int(length) - 2), draw(2)) for i, length in enumerate(lengths)]


@dataclass
class LoopResult:
    """What was measured on one backbone."""

    backbone: str
    rows: int
    tokens: int
    """Real tokens of one pass."""
    difference: Agreement
    """Of loss and gradients on one batch, checked before timing."""
    slots: dict[str, float]
    """Token slots computed per real token, by side."""
    taken: dict[str, list[Taken]]
    """By side; ``ours`` among them."""

    def speedup(self, side: str, clock: str) -> Quartiles:
        """Examples per second of ours over the side's."""
        return ratio(self.taken[side], self.taken["ours"], clock=clock)


def measure(backbone: str, options: argparse.Namespace) -> LoopResult:
    """All loops on one backbone.

    Raises:
        RuntimeError: the sides do not give the same loss and gradients.
    """
    device = torch.device(options.device)
    shape, low = SHAPES[backbone], backbone.endswith("bf16")
    base: nn.Module = build(shape).to(device)
    count = options.rows if shape.layers < 30 else max(2 * options.batch, options.rows // 8)
    rows = glue_like_rows(count, vocabulary=shape.vocabulary)
    batch = collate(rows[: options.batch], architecture="causal", pad_id=0, decoder_start_id=None, device=device)
    method = build_method("lora", {"rank": 16, "alpha": 32.0, "dropout": 0.0, "target": "all"})
    ours = our_side(base, batch, Precision(), method)
    model = peft_lora(base, rank=16, dropout=0.0)
    theirs = TrainerSide(model.base_model.model, batch, Routing(), Precision())
    theirs.examples = as_examples(rows[: options.batch])
    pour(ours, theirs)
    difference = agreement(ours, theirs, as_peft, all_logits=False)
    if not difference.largest <= 1e-4:
        raise RuntimeError(f"the sides differ on {backbone}: {difference}")
    if low:
        for host in (ours.side.model, model):
            for p in host.parameters():
                p.data = p.data if p.requires_grad else p.data.to(torch.bfloat16)
    autocast = torch.bfloat16 if low else None
    with tempfile.TemporaryDirectory() as folder:
        slots = {name: Slots() for name in ("ours", *options.sides)}
        trainer = partial(trainer_loop, model, folder=Path(folder))
        makers = {
            "ours": partial(our_loop, ours),
            "sorted": partial(bare_loop, model, by_length=True),
            "drawn": partial(bare_loop, model, by_length=False),
            "trainer": trainer,
            "grouped": partial(trainer, options={"train_sampling_strategy": "group_by_length"}),
        }

        def passes(some: list[TokenRow]) -> dict[str, Callable[[], None]]:
            what = Pass(some, device, batch=options.batch, autocast=autocast)
            return {name: makers[name](slots=slots[name], what=what) for name in slots}

        for run in passes(rows[: 2 * options.batch]).values():
            run()
        taken = interleaved(passes(rows), rounds=options.pairs, device=device, warm=False)
    return LoopResult(
        backbone=backbone,
        rows=len(rows),
        tokens=sum(row.length for row in rows),
        difference=difference,
        slots={name: counted.per_token for name, counted in slots.items()},
        taken=taken,
    )


def header(sides: Sequence[str]) -> str:
    """The head of the table."""
    names = " | ".join(f"ours / {side}" for side in sides)
    return (
        f"| backbone | {names} | ours: examples/s, real tokens/s | slots per token | difference |\n"
        + "|---" * (len(sides) + 4)
        + "|"
    )


def line(result: LoopResult, clock: str) -> str:
    """One row of the table."""
    passes = spread([1 / getattr(t, clock) for t in result.taken["ours"]]).median
    slots = ", ".join(f"{name} {count:.2f}" for name, count in result.slots.items())
    ratios = [str(result.speedup(side, clock)) for side in result.taken if side != "ours"]
    rates = f"{result.rows * passes:.1f}, {result.tokens * passes:,.0f}"
    return "| " + " | ".join([result.backbone, *ratios, rates, slots, str(result.difference)]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small backbone and three pairs")
    parser.add_argument("--backbones", help=f"of {', '.join(SHAPES)}; default: all, 256x4-8k with --quick")
    parser.add_argument("--pairs", type=int, help="default 7, 3 with --quick")
    parser.add_argument("--sides", default=",".join(SIDES), help="; ".join(f"{k}: {v}" for k, v in SIDES.items()))
    parser.add_argument("--rows", type=int, default=512, help="examples of one pass; an eighth of them on 135m")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--clock", choices=("wall", "cpu"), help="default: cpu for one thread of a processor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    options.pairs = options.pairs or (3 if options.quick else 7)
    options.clock = options.clock or ("cpu" if options.device == "cpu" and options.threads == 1 else "wall")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    names = (options.backbones or ("256x4-8k" if options.quick else ",".join(SHAPES))).split(",")
    unknown = [name for name in names if name not in SHAPES]
    if unknown:
        parser.error(f"unknown backbone {unknown[0]!r}; known: {', '.join(SHAPES)}")
    options.sides = options.sides.split(",")
    wrong = [side for side in options.sides if side not in SIDES]
    if wrong:
        parser.error(f"unknown side {wrong[0]!r}; known: {', '.join(SIDES)}")
    print(f"matrix rate {probe(torch.device(options.device)).float32_gflops:.0f} GFLOP/s in float32\n")
    print(header(options.sides))
    results = []
    for name in names:
        results.append(measure(name, options))
        print(line(results[-1], options.clock), flush=True)
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        document = {"torch": torch.__version__, "options": settings, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
