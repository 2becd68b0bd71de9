"""Methods that break one promise each."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from toys import RANK, Honest, PerTask, Shared, toy

from mtlbench import Setup


class StartsElsewhere(Shared):
    def __init__(self, base: nn.Linear, setup: Setup, name: str) -> None:
        super().__init__(base, setup, name)
        nn.init.constant_(self.up, 0.01)


class MindsTheWidth(Shared):
    """Depends on how wide a batch is; only rows of the padding check are so wide."""

    def ups(self, x: Tensor) -> Tensor:
        return self.up * (2.0 if x.shape[1] > 11 else 1.0)


class SortsIds(PerTask):
    def ids(self, x: Tensor) -> Tensor:
        return super().ids(x).sort().values


class TakesChunksForRows(PerTask):
    """Asks for the tasks of the batch's rows, where layers see chunks."""

    def ids(self, x: Tensor) -> Tensor:
        tasks = self.routing.tasks
        return tasks.repeat_interleave(len(x) // len(tasks))


class RepeatsTheBatch(PerTask):
    """Three rows under three beams are routed as 0, 1, 2, 0, 1, 2, ... and arrive as 0, 0, 0, 1, 1, 1, ..."""

    def ids(self, x: Tensor) -> Tensor:
        ids = super().ids(x)
        return ids.view(3, 3).T.flatten() if len(ids) == 9 else ids


class LeftOver(Shared):
    def __init__(self, base: nn.Linear, setup: Setup, name: str) -> None:
        super().__init__(base, setup, name)
        self.left_over = nn.Parameter(torch.ones(3))


class SteepRoot(Shared):
    """The slope of a root at zero is infinite."""

    def __init__(self, base: nn.Linear, setup: Setup, name: str) -> None:
        super().__init__(base, setup, name)
        self.root = nn.Parameter(torch.zeros(()))

    def term(self, x: Tensor) -> Tensor:
        return super().term(x) + self.root.abs().sqrt()


class MixesInTheMean(PerTask):
    def ups(self, x: Tensor) -> Tensor:
        return super().ups(x) + 0.1 * self.up.mean(0)


class ForgetsTasks(PerTask):
    """Knows three tasks: the others take the parameters of the third."""

    def ids(self, x: Tensor) -> Tensor:
        return super().ids(x).clamp(max=2)


class OwnNoise(Shared):
    """Noise from a generator that nobody replays."""

    def __init__(self, base: nn.Linear, setup: Setup, name: str) -> None:
        super().__init__(base, setup, name)
        self.draw = torch.Generator().manual_seed(setup.seed)

    def term(self, x: Tensor) -> Tensor:
        keep = torch.bernoulli(torch.full_like(x, 0.5), generator=self.draw) if self.training else 1.0
        return super().term(x * keep)


class Scaled(PerTask):
    """Its scale is no parameter."""

    scale = 1.0

    def term(self, x: Tensor) -> Tensor:
        return super().term(x) * self.scale


class GlobalBuffer(Shared):
    """A fixed random projection, drawn anew by every attach."""

    def __init__(self, base: nn.Linear, setup: Setup, name: str) -> None:
        super().__init__(base, setup, name)
        self.register_buffer("fixed", torch.randn(RANK, RANK))

    def ups(self, x: Tensor) -> Tensor:
        return self.up @ self.fixed


class GlobalStart(Shared):
    def __init__(self, base: nn.Linear, setup: Setup, name: str) -> None:
        super().__init__(base, setup, name)
        self.down = nn.Parameter(torch.randn(RANK, base.in_features))


def layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Shared)]


def raise_scale(self: Honest, model: nn.Module, step: int) -> None:
    for layer in layers(model):
        layer.scale += 0.5


@torch.no_grad()
def shake(self: Honest, model: nn.Module, step: int) -> None:
    for layer in layers(model):
        layer.up += random.random()


STEPS_SEEN: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@torch.no_grad()
def speed_up(self: Honest, model: nn.Module, step: int) -> None:
    """Counts steps where no checkpoint looks."""
    STEPS_SEEN[model] = STEPS_SEEN.get(model, 0) + 1
    for layer in layers(model):
        layer.up *= 1 + 0.1 * STEPS_SEEN[model]


def only_ups(self: Honest, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    return [{"params": [layer.up for layer in layers(model)], "lr": learning_rate}]


def freeze_downs(self: Honest, model: nn.Module, trainer: Any) -> None:
    trainer.run()
    for layer in layers(model):
        layer.down.requires_grad_(False)


@torch.no_grad()
def merge_twice(self: Honest, model: nn.Module) -> None:
    for layer in layers(model):
        layer.up *= 2
    Honest.finish(self, model)


class GivesNan(Shared):
    def term(self, x: Tensor) -> Tensor:
        return super().term(x) * float("nan")


class BreaksLater(Shared):
    def term(self, x: Tensor) -> Tensor:
        return super().term(x) / (self.up == 0).all().float()


class StartsAtNan(Shared):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.down.data[0, 0] = float("nan")


class MultipliesTheSeed(Shared):
    def __init__(self, base: nn.Linear, setup: Setup, name: str) -> None:
        super().__init__(base, setup, name)
        torch.Generator().manual_seed(setup.seed * 1000003)


def leave(self: Honest, model: nn.Module) -> None:
    sys.exit("bye")


@torch.no_grad()
def merge_in_place(self: Honest, model: nn.Module) -> None:
    for layer in layers(model):
        layer.base.weight += layer.up @ layer.down
        layer.up.zero_()


def train_norms(self: Honest, model: nn.Module, setup: Setup) -> None:
    Honest.attach(self, model, setup)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.requires_grad_(True)


def stumble(self: Honest, *arguments: Any) -> None:
    raise TypeError("one argument too many")


@dataclass(frozen=True)
class Mutant:
    """A broken method, the check that finds it, and words of the message."""

    name: str
    method: Honest
    check: str
    seen: str
    also: tuple[str, ...] = ()
    """Checks that find it too."""


MUTANTS = [
    Mutant("attach_raises", toy(attach=stumble), "attach", "raised TypeError: one argument too many (mutants.py:"),
    Mutant("starts_elsewhere", toy(StartsElsewhere), "identity_at_start", "the logits before the first step"),
    Mutant("minds_the_width", toy(MindsTheWidth), "padding", "padded on the right", also=("packing",)),
    Mutant("takes_chunks_for_rows", toy(TakesChunksForRows), "packing", "rows have to be padded"),
    Mutant("sorts_ids", toy(SortsIds), "mixed_tasks", "logits of task 0", also=("packing",)),
    Mutant("says_routed", toy(task_routed=True), "routing", "task_routed = True, but"),
    Mutant("says_unrouted", toy(PerTask, task_routed=False), "routing", "task_routed = False, but", also=("packing",)),
    Mutant("repeats_the_batch", toy(RepeatsTheBatch), "beams", "log-probabilities of row 0"),
    Mutant("left_over", toy(LeftOver), "gradients", "no gradient but zero in 10 steps"),
    Mutant("steep_root", toy(SteepRoot), "gradients", "nan or infinite gradients"),
    Mutant("fit_raises", toy(fit=stumble), "gradients", "raised TypeError"),
    Mutant("mixes_in_the_mean", toy(MixesInTheMean), "absent_tasks", "gradients for tasks [1, 3, 5, 6] too"),
    Mutant("forgets_tasks", toy(ForgetsTasks), "absent_tasks", "no gradient for tasks [4]"),
    Mutant("own_noise", toy(OwnNoise), "checkpointing", "other gradients when layers are recomputed", also=("resume",)),
    Mutant("only_ups", toy(param_groups=only_ups), "keys", "gets gradients but never moves"),
    Mutant("freezes_downs", toy(fit=freeze_downs), "keys", "attached but not trained"),
    Mutant("hidden_scale", toy(Scaled, after_step=raise_scale), "reload", "before saving and after loading"),
    Mutant("global_start", toy(GlobalStart), "same_seed", "initial values differ"),
    Mutant("global_noise", toy(after_step=shake), "same_seed", "trained values differ"),
    Mutant("forgets_steps", toy(after_step=speed_up, resumable=True), "resume", "interrupted after step 5: "),
    Mutant("merges_twice", toy(finish=merge_twice), "finish", "logits before and after finish"),
    Mutant("finish_raises", toy(finish=stumble), "finish", "raised TypeError"),
    Mutant("merges_in_place", toy(finish=merge_in_place), "backbone_untouched", "finish wrote into frozen tensors"),
    Mutant("trains_norms", toy(attach=train_norms), "attach", "weights of the backbone itself require gradients"),
    Mutant("gives_nan", toy(GivesNan), "attach", "the logits are nan or infinite before the first step"),
    Mutant("breaks_later", toy(BreaksLater), "attach", "the logits are nan or infinite once its parameters have moved"),
    Mutant("starts_at_nan", toy(StartsAtNan), "attach", "the initial value of"),
    Mutant("multiplies_the_seed", toy(MultipliesTheSeed), "attach", "raised ValueError: Overflow"),
    Mutant("leaves", toy(finish=leave), "finish", "raised SystemExit: sys.exit('bye') was called (mutants.py:"),
    Mutant("forgets_the_annotation", toy(rank_of_all=8), "settings", "rank_of_all = 8 has no annotation"),
]
