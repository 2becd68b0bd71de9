"""Tiny backbones with a method attached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from mtlbench.api.method import Method, Setup
from mtlbench.backbones.backbone import Backbone, fingerprint
from mtlbench.conformance.findings import NotApplicable
from mtlbench.conformance.life import STEPS, Life, live
from mtlbench.conformance.rows import batch_of, draw_rows
from mtlbench.conformance.toys import setup_for
from mtlbench.errors import RequestError
from mtlbench.training.batches import Batch
from mtlbench.training.checkpoints.state import trainable_names

TASKS = 3
SEED = 7
NOISE = 0.1
"""Standard deviation of what moves every trainable parameter, so that zeros at the start hide nothing."""


class Refused(NotApplicable):
    """The method says that it cannot be used here."""


@dataclass(frozen=True)
class Specimen:
    """A tiny backbone with the method attached."""

    backbone: Backbone
    """What the model shares its storage with."""
    model: nn.Module
    setup: Setup


class Lab:
    """What the checks of one method on one backbone need.

    Args:
        build: Makes the backbone; every specimen has one of its own, so that checks cannot disturb one another.
        folder: An empty folder to save the adapter to.
    """

    def __init__(self, *, method: Method, build: Callable[[], nn.Module], folder: Path) -> None:
        self.method, self.build, self.folder = method, build, folder

    @cached_property
    def architecture(self) -> str:
        """``causal`` or ``seq2seq``."""
        return setup_for(self.build()).architecture

    def attached(self, *, tasks: int = TASKS, noise: float = NOISE) -> Specimen:
        """The method on a backbone of its own, moved by noise, in evaluation mode.

        Raises:
            Refused: when the method refuses the backbone.
        """
        original = self.build()
        setup = setup_for(original, tasks=tasks, seed=SEED, total_steps=STEPS)
        backbone = Backbone(
            name=type(original).__name__,
            model=original,
            tokenizer=None,
            architecture=setup.architecture,
            parameters=sum(p.numel() for p in original.parameters()),
            fingerprint=fingerprint(original),
        )
        specimen = Specimen(backbone, backbone.fresh(), setup)
        reason = self.method.refuse(setup)
        if reason is not None:
            raise Refused(f"refused: {reason}")
        try:
            self.method.attach(specimen.model, setup)
        except RequestError as error:
            raise Refused(f"refused: {error}") from error
        specimen.model.eval()
        self.move(specimen.model, noise)
        return specimen

    @torch.no_grad()
    def move(self, model: nn.Module, noise: float = NOISE) -> None:
        """Add the same Gaussian noise to the trainable parameters whatever the global random state."""
        draw = torch.Generator().manual_seed(SEED)
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=draw).to(p), alpha=noise)

    def batch(self, tasks: Sequence[int]) -> Batch:
        """Rows of these tasks, all of one length, so that nothing is padded; the same tokens for as many tasks."""
        return batch_of(draw_rows(tasks, lengths=[8] * len(tasks)), self.architecture)

    def need_training(self) -> None:
        """Raise :class:`NotApplicable` for a method without trainable parameters."""
        if not self._trains:
            raise NotApplicable("the method adds no trainable parameters")

    def need_routing(self) -> None:
        """Raise :class:`NotApplicable` for a method that is not task-routed."""
        if not self.method.task_routed:
            raise NotApplicable("the method is not task_routed")

    @cached_property
    def life(self) -> Life:
        """One life of the method, observed to its end or to the first error."""
        return live(self)

    @cached_property
    def _trains(self) -> bool:
        return bool(trainable_names(self.attached(noise=0.0).model))
