"""What PEML costs per step during its search and after it, as ratios to plain LoRA in the same run.

    python benchmarks/search_cost.py [--backbones demo,512x6] [--rounds 5] [--json FILE]

A run is a whole fit of 24 steps through our training loop, the first half of them the search (its warm-up included, as
in a real run); ratios are of the mean step of the same stretch in the same round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
from backbones import SHAPES, TASKS, build, fresh
from timing import spread
from torch import nn

from mtlbench.api.cell import Protocol
from mtlbench.backbones.backbone import load_backbone
from mtlbench.planning.settings import build as build_method
from mtlbench.planning.settings import read_settings, split_methods
from mtlbench.testing import setup_for
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Collator
from mtlbench.training.loop import Loop, TrainingJob
from mtlbench.training.splits import Splits

STEPS, BATCH, LENGTH = 24, 32, 60
LORA = "lora"
SIDES = ("peml[search_share=0.5]", "peml[search_share=0.5,arch_update=joint]", "preembedd+lora")


def backbone(name: str) -> nn.Module:
    """The embedded demo, or a random Llama by its shape."""
    if name == "demo":
        return load_backbone(name, dtype=torch.float32, attention="sdpa", device=torch.device("cpu")).model
    return build(SHAPES[name])


def step_seconds(model: nn.Module, words: str, rows: list[TokenRow]) -> list[float]:
    """Processor seconds from the end of each step to the end of the next."""
    ((name, settings),) = split_methods(words)
    method = build_method(name, read_settings(name, settings))
    own = fresh(model)
    setup = setup_for(own, tasks=TASKS, total_steps=STEPS)
    method.attach(own, setup)
    ends: list[float] = []
    held = len(rows) // 4
    job = TrainingJob(
        model=own,
        method=method,
        splits=Splits(train=rows[held:], stop=[], search=rows[:held]),
        protocol=Protocol(steps=STEPS, batch_size=BATCH, evals_per_run=0),
        tasks=TASKS,
        routing=setup.routing,
        collator=Collator("causal", 0, None, torch.device("cpu")),
        seed=0,
    )
    loop = Loop(job, on_step=lambda *_: ends.append(time.process_time()))
    method.fit(own, loop)
    return [after - before for before, after in itertools.pairwise(ends)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="demo,512x6")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in given.backbones.split(","):
        model = backbone(name)
        random = np.random.default_rng(0)
        vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        rows = [TokenRow(i % TASKS, tuple(random.integers(5, vocabulary, LENGTH).tolist()), (7, 8)) for i in range(512)]
        ratios: dict[str, dict[str, list[float]]] = {side: {"search": [], "after": []} for side in SIDES}
        for _ in range(given.rounds):
            lora = step_seconds(model, LORA, rows)
            for side in SIDES:
                own = step_seconds(model, side, rows)
                half = STEPS // 2 - 1
                ratios[side]["search"].append(sum(own[:half]) / sum(lora[:half]))
                ratios[side]["after"].append(sum(own[half + 1 :]) / sum(lora[half + 1 :]))
        found[name] = ratios
        print(f"\n{name}: step time over {LORA} (median [quartiles] of {given.rounds} rounds)")
        for side, by in ratios.items():
            print(f"  {side:<45} search {spread(by['search'])}   after {spread(by['after'])}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
