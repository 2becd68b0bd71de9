"""One life of a method, as a cell leads it: attach, fit, save, finish; and what was seen on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from mtlbench.api.cell import Protocol
from mtlbench.cells.guards import label_logits
from mtlbench.conformance.findings import NotApplicable
from mtlbench.conformance.learning import Watch
from mtlbench.conformance.toys import toy_loop, toy_rows
from mtlbench.training.checkpoints.recovery import Recovery
from mtlbench.training.checkpoints.state import save_adapter, trainable_state
from mtlbench.training.loop import Loop, OnStep
from mtlbench.training.splits import carve

if TYPE_CHECKING:
    from mtlbench.conformance.lab import Lab, Specimen

T = TypeVar("T")

STEPS = 10
"""Optimizer steps. Factors that start at zero hold others back for a step or two; a search needs a few of its own."""
SAMPLE = (2, 0, 1, 1)
"""Task ids of the rows whose logits are compared."""


@dataclass
class Life:
    """What was seen. What a stage leaves behind is missing where it was not reached."""

    specimen: Specimen
    start: dict[str, Tensor]
    """Trainable state after attach."""
    watch: Watch
    changed: dict[str, list[str]]
    """For each stage the frozen tensors of the backbone whose bytes are not what they were."""
    end: dict[str, Tensor] | None = None
    """Trainable state after fit."""
    saved_logits: Tensor | None = None
    """Of the state that was saved: trained, and then moved by noise."""
    finished_logits: Tensor | None = None
    failed: tuple[str, Exception] | None = None
    """The stage that raised, and what; the life ended there."""

    def reraise(self, stage: str) -> None:
        """Raise what ``stage`` raised."""
        if self.failed is not None and self.failed[0] == stage:
            raise self.failed[1]

    @property
    def trained(self) -> dict[str, Tensor]:
        """Trainable state after fit."""
        return _reached(self.end, "fit raised an error: see the check gradients")

    @property
    def saved(self) -> Tensor:
        """Logits of the state that was saved."""
        return _reached(self.saved_logits, "the adapter was not saved: see the checks gradients and reload")

    @property
    def finished(self) -> Tensor:
        """The same logits after finish."""
        return _reached(self.finished_logits, "finish was not reached: see the checks gradients and reload")


def _reached(left: T | None, otherwise: str) -> T:
    if left is None:
        raise NotApplicable(otherwise)
    return left


def live(lab: Lab) -> Life:
    """A life to its end or to the first error."""
    life = begin(lab)
    for name, stage in (("fit", fit), ("save", _save), ("finish", _finish)):
        try:
            stage(lab, life)
        except Exception as error:
            life.failed = (name, error)
            break
    return life


def begin(lab: Lab) -> Life:
    """The method attached, nothing trained."""
    specimen = lab.attached(noise=0.0)
    changed = {"attach": _changed(lab, specimen)}
    return Life(specimen, trainable_state(specimen.model), Watch(specimen.model), changed)


def fit(lab: Lab, life: Life) -> None:
    """Train, and see what moves."""
    model = life.specimen.model
    loop = loop_of(lab, life.specimen, lambda step, losses, tasks: life.watch.look())
    try:
        lab.method.fit(model, loop)
    finally:
        life.changed["fit"] = _changed(lab, life.specimen)
    model.eval()
    life.watch.look()
    life.end = trainable_state(model)


def loop_of(lab: Lab, specimen: Specimen, on_step: OnStep, recovery: Recovery | None = None) -> Loop:
    """The real loop on rows that can be learnt, with a held-out part for methods that search."""
    setup = specimen.setup
    protocol = Protocol(steps=STEPS, batch_size=6, held_out=0.2, evals_per_run=0)
    return toy_loop(
        specimen.model,
        lab.method,
        setup,
        protocol,
        splits=carve(toy_rows(tasks=len(setup.tasks), rows=10), held_out=protocol.held_out, seed=setup.seed),
        on_step=on_step,
        recovery=recovery,
    )


def _save(lab: Lab, life: Life) -> None:
    model = life.specimen.model
    lab.move(model)
    save_adapter(model, lab.folder, {})
    life.saved_logits = label_logits(model, lab.batch(SAMPLE), life.specimen.setup.routing)


def _finish(lab: Lab, life: Life) -> None:
    model = life.specimen.model
    lab.method.finish(model)
    life.changed["finish"] = _changed(lab, life.specimen)
    life.finished_logits = label_logits(model, lab.batch(SAMPLE), life.specimen.setup.routing)


def _changed(lab: Lab, specimen: Specimen) -> list[str]:
    """Names of the backbone's tensors that are not, bit for bit, those of a new one."""

    def tensors(model: nn.Module) -> dict[str, Tensor]:
        found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {name: tensor.detach().reshape(-1).view(torch.uint8) for name, tensor in found.items()}

    now = tensors(specimen.backbone.model)
    return [name for name, bits in tensors(lab.build()).items() if not torch.equal(bits, now[name])]
