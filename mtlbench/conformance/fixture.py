"""Tiny backbones with a method attached, and one that runs through a cell's stages: attach, fit, save, finish."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.api.cell import Protocol
from mtlbench.api.method import Method, Setup
from mtlbench.backbones.backbone import Backbone, fingerprint
from mtlbench.cells.guards import label_logits
from mtlbench.conformance.findings import NotApplicable
from mtlbench.conformance.learning import ParameterWatch
from mtlbench.conformance.rows import batch_of, draw_rows
from mtlbench.conformance.toys import setup_for, toy_loop, toy_rows
from mtlbench.errors import RequestError
from mtlbench.training.batches import Batch
from mtlbench.training.checkpoints.recovery import CheckpointPolicy
from mtlbench.training.checkpoints.state import save_adapter, trainable_names, trainable_state
from mtlbench.training.loop import Loop, OnStep
from mtlbench.training.splits import carve

TASKS = 3
SEED = 2**63 - 25
"""As large as the seeds of cells are, which have 63 bits: code that multiplies or adds to one overflows here too."""
NOISE = 0.1
"""Standard deviation of the noise added to every trainable parameter, so that zero initialisation hides nothing."""


class Refused(NotApplicable):
    """The method refuses this backbone."""


@dataclass(frozen=True)
class Case:
    """A tiny backbone with the method attached."""

    backbone: Backbone
    """The original; the model shares its storage."""
    model: nn.Module
    setup: Setup


class Fixture:
    """The input of the checks of one method on one backbone.

    Args:
        build: Makes the backbone; every case gets a new one, so that checks are independent.
        folder: An empty folder to save the adapter to.
    """

    def __init__(self, *, method: Method, build: Callable[[], nn.Module], folder: Path) -> None:
        self.method, self.build, self.folder = method, build, folder

    @cached_property
    def architecture(self) -> str:
        """``causal`` or ``seq2seq``."""
        return setup_for(self.build()).architecture

    def attached(self, *, tasks: int = TASKS, noise: float = NOISE) -> Case:
        """The method on a new backbone, with noise on its parameters, in evaluation mode.

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
        case = Case(backbone, backbone.fresh(), setup)
        reason = self.method.refuse(setup)
        if reason is not None:
            raise Refused(f"refused: {reason}")
        try:
            self.method.attach(case.model, setup)
        except RequestError as error:
            raise Refused(f"refused: {error}") from error
        case.model.eval()
        self.move(case.model, noise)
        return case

    @torch.no_grad()
    def move(self, model: nn.Module, noise: float = NOISE) -> None:
        """Add Gaussian noise to the trainable parameters, independent of the global random state."""
        draw = torch.Generator().manual_seed(SEED)
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=draw).to(p), alpha=noise)

    def batch(self, tasks: Sequence[int]) -> Batch:
        """Rows of these tasks, all of one length, so without padding; the tokens depend on the number of rows only."""
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
    def trained(self) -> TrainedCopy:
        """One run through all stages, up to the first error."""
        return trained_copy(self)

    @cached_property
    def _trains(self) -> bool:
        return bool(trainable_names(self.attached(noise=0.0).model))


T = TypeVar("T")

STEPS = 10
"""Optimizer steps. Zero-initialised factors delay gradients of others by a step or two; a search needs a few more."""
SAMPLE = (2, 0, 1, 1)
"""Task ids of the rows whose logits are compared."""


@dataclass
class TrainedCopy:
    """Observations of a run through all stages; ``None`` for stages that were not reached."""

    case: Case
    start: dict[str, Tensor]
    """Trainable state after attach."""
    watch: ParameterWatch
    changed: dict[str, list[str]]
    """For each stage the frozen tensors of the backbone whose bytes changed."""
    end: dict[str, Tensor] | None = None
    """Trainable state after fit."""
    saved_logits: Tensor | None = None
    """Of the saved state: trained, with noise added."""
    finished_logits: Tensor | None = None
    failed: tuple[str, BaseException] | None = None
    """The stage that raised and its exception; no later stage was run."""

    def reraise(self, stage: str) -> None:
        """Raise the exception of ``stage``, if it raised one."""
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


def _reached(value: T | None, otherwise: str) -> T:
    if value is None:
        raise NotApplicable(otherwise)
    return value


def trained_copy(fixture: Fixture) -> TrainedCopy:
    """Run all stages, up to the first error."""
    training = begin(fixture)
    for name, stage in (("fit", fit), ("save", _save), ("finish", _finish)):
        try:
            stage(fixture, training)
        except (Exception, SystemExit) as error:
            training.failed = (name, error)
            break
    return training


def begin(fixture: Fixture) -> TrainedCopy:
    """Attach the method, without training."""
    case = fixture.attached(noise=0.0)
    changed = {"attach": _changed(fixture, case)}
    return TrainedCopy(case, trainable_state(case.model), ParameterWatch(case.model), changed)


def fit(fixture: Fixture, training: TrainedCopy) -> None:
    """Train, and record which parameters change."""
    model = training.case.model
    loop = loop_of(fixture, training.case, lambda step, losses, tasks: training.watch.look())
    try:
        fixture.method.fit(model, loop)
    finally:
        training.changed["fit"] = _changed(fixture, training.case)
    model.eval()
    training.watch.look()
    training.end = trainable_state(model)


def loop_of(fixture: Fixture, case: Case, on_step: OnStep, recovery: CheckpointPolicy | None = None) -> Loop:
    """The real training loop on learnable rows, with a search split for methods that search."""
    setup = case.setup
    protocol = Protocol(steps=STEPS, batch_size=6, held_out=0.2, evals_per_run=0)
    return toy_loop(
        case.model,
        fixture.method,
        setup,
        protocol,
        splits=carve(toy_rows(tasks=len(setup.tasks), rows=10), held_out=protocol.held_out, seed=setup.seed),
        on_step=on_step,
        recovery=recovery,
    )


def _save(fixture: Fixture, training: TrainedCopy) -> None:
    model = training.case.model
    fixture.move(model)
    save_adapter(model, fixture.folder, {})
    training.saved_logits = label_logits(model, fixture.batch(SAMPLE), training.case.setup.routing)


def _finish(fixture: Fixture, training: TrainedCopy) -> None:
    model = training.case.model
    fixture.method.finish(model)
    training.changed["finish"] = _changed(fixture, training.case)
    training.finished_logits = label_logits(model, fixture.batch(SAMPLE), training.case.setup.routing)


def _changed(fixture: Fixture, case: Case) -> list[str]:
    """Names of the backbone's tensors that are not bitwise equal to those of a new one."""

    def tensors(model: nn.Module) -> dict[str, Tensor]:
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {name: tensor.detach().reshape(-1).view(torch.uint8) for name, tensor in named.items()}

    now = tensors(case.backbone.model)
    return [name for name, bits in tensors(fixture.build()).items() if not torch.equal(bits, now[name])]


@dataclass(frozen=True)
class Check:
    """One promise of a method."""

    name: str
    promise: str
    advice: str
    """What to change if the promise is broken; empty if only an exception can break it."""
    run: Callable[[Fixture], None]
    """Raises ``PromiseBroken`` with what was observed, ``NotApplicable``, or the method's exception."""


def scramble(seed: int) -> None:
    """Set every global random state: of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def scrambled(seed: int) -> Iterator[None]:
    """Context in which all global random states are those of ``seed``; restored afterwards."""
    numbers, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        scramble(seed)
        try:
            yield
        finally:
            np.random.set_state(numbers)
            random.setstate(python)
