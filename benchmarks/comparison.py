"""One backbone with every side of the comparison on it: what agrees, what it keeps, what it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from backbones import SHAPES, TASKS, build, make_batch
from forms import Agreement, agreement, as_peft, forms_of, pour, reference_side
from sides import Attached, Precision, Side, floor_side, our_side, peft_side
from timing import Quartiles, Taken, interleaved, ratio
from torch import nn

from mtlbench.api.method import Method
from mtlbench.planning.settings import build as build_method
from mtlbench.training.batches import Batch

RANKS: dict[str, Callable[[Any], int]] = {
    "multilora": lambda m: m.rank * m.modules,
    "mtl_lora": lambda m: m.rank * m.ups,
    "molora": lambda m: m.rank * m.experts,
    "poly": lambda m: m.rank * m.skills,
    "mhr": lambda m: m.rank * m.skills,
    "cpoly": lambda m: m.rank * (m.common + TASKS * m.specific_skills),
}
"""Rank of the LoRA that a method is compared with, where it is not the method's own."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest relative difference of loss and gradients from the reference form."""


@dataclass(frozen=True)
class Conditions:
    """What holds for every side."""

    pairs: int
    """Rounds; every side runs once in each."""
    device: torch.device
    precision: Precision
    all_logits: bool = True
    """Time ours with logits of all tokens, and the reference forms."""
    labels_only: bool = True
    """Time ours with logits at labels only."""


@dataclass
class StepRow:
    """What was measured of one case on one backbone.

    Sides are ``peft`` (LoRA of rank 16), ``ours`` (the case), ``labels`` (the case with logits at labels only),
    ``lora`` (our LoRA of rank ``lora_rank``) and the reference forms by their titles. All but ``labels`` compute the
    logits of all tokens.
    """

    backbone: str
    case: str
    lora_rank: int | None = None
    differences: dict[str, Agreement] = field(default_factory=dict)
    """From each reference form, checked before timing."""
    mib: dict[str, float] = field(default_factory=dict)
    """Kept for the backward by side."""
    taken: dict[str, list[Taken]] = field(default_factory=dict)
    """Seconds of the steps by side."""

    def ratio(self, above: str, below: str, clock: str) -> Quartiles | None:
        """Time of one side over that of another in the same rounds; ``None`` where one was not measured."""
        if above not in self.taken or below not in self.taken:
            return None
        return ratio(self.taken[above], self.taken[below], clock=clock)


class StepComparison:
    """All cases on one backbone."""

    def __init__(self, backbone: str, conditions: Conditions) -> None:
        self.backbone, self.conditions, self.precision = backbone, conditions, conditions.precision
        shape, device = SHAPES[backbone], conditions.device
        self.base: nn.Module = build(shape).to(device, self.precision.autocast or torch.float32)
        self.batch: Batch = make_batch(shape, device=device)
        self.peft = peft_side(self.base, self.batch, self.precision, rank=16, dropout=0.0)
        self._loras: dict[int, Attached] = {}
        ours = self.lora(16)
        pour(ours, self.peft)
        self.baseline = agreement(ours, self.peft, as_peft, all_logits=True)
        if not self.baseline.largest <= self.tolerance:
            raise RuntimeError(f"our LoRA and peft's differ on {backbone}: {self.baseline}")

    def lora(self, rank: int) -> Attached:
        """Our LoRA of that rank without dropout."""
        if rank not in self._loras:
            method = build_method("lora", {"rank": rank, "alpha": 2.0 * rank, "dropout": 0.0, "target": "all"})
            self._loras[rank] = our_side(self.base, self.batch, self.precision, method)
        return self._loras[rank]

    def fixed(self) -> list[StepRow]:
        """The floor, and peft's LoRA with dropout."""
        rows = []
        dropped = partial(peft_side, rank=16, dropout=0.1)
        for case, make in (("floor", floor_side), ("peft lora, dropout 0.1", dropped)):
            row = StepRow(self.backbone, case)
            self._measure(row, {"peft": self.peft, "ours": make(self.base, self.batch, self.precision)})
            rows.append(row)
        return rows

    def case(self, word: str, method: Method) -> StepRow:
        """One of our methods.

        Raises:
            RequestError: it does not fit the backbone.
        """
        row = StepRow(self.backbone, word)
        ours = our_side(self.base, self.batch, self.precision, method)
        sides = {"peft": self.peft, "ours": ours.side}
        for form in forms_of(method):
            sides[form.title] = reference_side(ours, self.base, self.batch, self.precision, form)
            found = agreement(ours, sides[form.title], form.move, all_logits=True)
            row.differences[form.title] = found
        if not all(found.largest <= self.tolerance for found in row.differences.values()):
            return row
        if hasattr(method, "rank"):
            row.lora_rank = RANKS[method.name](method) if method.name in RANKS else int(method.rank)
            sides["lora"] = self.lora(row.lora_rank).side
        self._measure(row, sides)
        return row

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.precision.autocast or torch.float32]

    def _measure(self, row: StepRow, sides: dict[str, Side]) -> None:
        runs: dict[str, Callable[[], None]] = {"peft": partial(self.peft.step, all_logits=True)}
        if self.conditions.all_logits:
            runs.update({name: partial(side.step, all_logits=True) for name, side in sides.items()})
        if self.conditions.labels_only:
            runs["labels"] = partial(sides["ours"].step, all_logits=False)
        row.mib = {name: side.saved_bytes(all_logits=True) / 2**20 for name, side in sides.items()}
        row.mib["labels"] = sides["ours"].saved_bytes(all_logits=False) / 2**20
        row.taken = interleaved(runs, rounds=self.conditions.pairs, device=self.conditions.device)
