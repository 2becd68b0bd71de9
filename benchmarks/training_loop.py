"""Examples per second of the whole training loop: ours against Hugging Face's Trainer with peft's LoRA.

    python benchmarks/training_loop.py --quick
    python benchmarks/training_loop.py --json out.json

Both train LoRA of rank 16 on every linear on the same frozen weights and rows, in batches of 32, without dropout or
logging. Ours is the training loop of `mtlbench run`. README.md in this folder describes the protocol.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from backbones import TASKS, BackboneShape, build
from forms import Agreement, agreement, as_peft, pour
from loops import BATCH, Slots, TrainerSide, as_examples, our_loop, trainer_loop
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
}
GOALS = {"512x6-8k": 4.0, "256x4-8k": 6.0, "256x4-32k": 11.0}


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
    ours: list[Taken]
    trainer: list[Taken]

    def speedup(self, clock: str) -> Quartiles:
        """Examples per second of ours over the Trainer's."""
        return ratio(self.trainer, self.ours, clock=clock)


def measure(backbone: str, options: argparse.Namespace) -> LoopResult:
    """Both loops on one backbone.

    Raises:
        RuntimeError: the sides do not give the same loss and gradients.
    """
    device = torch.device(options.device)
    shape = SHAPES[backbone]
    base: nn.Module = build(shape).to(device)
    rows = glue_like_rows(options.rows, vocabulary=shape.vocabulary)
    batch = collate(rows[:BATCH], architecture="causal", pad_id=0, decoder_start_id=None, device=device)
    method = build_method("lora", {"rank": 16, "alpha": 32.0, "dropout": 0.0, "target": "all"})
    ours = our_side(base, batch, Precision(), method)
    model = peft_lora(base, rank=16, dropout=0.0)
    theirs = TrainerSide(model.base_model.model, batch, Routing(), Precision())
    theirs.examples = as_examples(rows[:BATCH])
    pour(ours, theirs)
    difference = agreement(ours, theirs, as_peft, all_logits=False)
    if not difference.largest <= 1e-4:
        raise RuntimeError(f"the sides differ on {backbone}: {difference}")
    with tempfile.TemporaryDirectory() as folder:
        slots = {"ours": Slots(), "trainer": Slots()}
        makers = {
            "trainer": partial(trainer_loop, model, slots["trainer"], folder=Path(folder), device=device),
            "ours": partial(our_loop, ours, slots["ours"], device=device),
        }
        for make in makers.values():
            make(rows=rows[: 2 * BATCH])()
        runs = {name: make(rows=rows) for name, make in makers.items()}
        taken = interleaved(runs, rounds=options.pairs, device=device, warm=False)
    return LoopResult(
        backbone=backbone,
        rows=len(rows),
        tokens=sum(row.length for row in rows),
        difference=difference,
        slots={name: counted.per_token for name, counted in slots.items()},
        ours=taken["ours"],
        trainer=taken["trainer"],
    )


HEADER = (
    "| backbone | ours / Trainer | goal | examples/s: ours, Trainer | real tokens/s | slots per token | difference |\n"
    "|---|---|---|---|---|---|---|"
)


def line(result: LoopResult, clock: str) -> str:
    """One row of the table."""
    ours, trainer = (spread([1 / getattr(t, clock) for t in taken]).median for taken in (result.ours, result.trainer))
    examples = f"{result.rows * ours:.1f}, {result.rows * trainer:.1f}"
    tokens = f"{result.tokens * ours:,.0f}, {result.tokens * trainer:,.0f}"
    goal = f"{GOALS[result.backbone]:g}"
    slots = f"{result.slots['ours']:.2f}, {result.slots['trainer']:.2f}"
    cells = (result.backbone, result.speedup(clock), goal, examples, tokens, slots, result.difference)
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small backbone and three pairs")
    parser.add_argument("--backbones", help=f"of {', '.join(SHAPES)}; default: all, 256x4-8k with --quick")
    parser.add_argument("--pairs", type=int, help="default 7, 3 with --quick")
    parser.add_argument("--rows", type=int, default=512, help="examples of one pass, a multiple of 32")
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
    print(f"matrix rate {probe(torch.device(options.device)).float32_gflops:.0f} GFLOP/s in float32\n\n{HEADER}")
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
