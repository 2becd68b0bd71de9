"""Multitask prompt tuning: a shared prompt times a low-rank matrix for each task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Answers, Method, Setup, Trainer, hookimpl, nn
from mtlbench_methods.settings import check
from mtlbench_methods.soft_prompt_method import SoftPromptMethod, SourceTasks, prompt_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


NOISE = 0.02


@dataclass(frozen=True, kw_only=True)
class Mpt(SoftPromptMethod):
    """The shared prompt is the slow part, the matrices of the tasks are the fast one.

    First a plain prompt of each task is trained, its teacher; then the shared prompt and the matrices, on the loss and
    on the distance to the teachers. With ``--sources``, that is done with the sources; the targets start from their
    mean factors, and go on with the shared prompt without teachers, as in the paper. Without, all tasks take part.

    Unlike in the paper, batches are those of every method: no subset of tasks is drawn for a step.
    """

    name: ClassVar[str] = "mpt"
    source: ClassVar[str] = (
        "Wang et al. 2023, arXiv:2303.02861; huggingface/peft@0.21.2:tuners/multitask_prompt_tuning/model.py"
    )
    task_routed: ClassVar[bool] = True
    resumable: ClassVar[bool] = True

    rank: int = 1
    """Of the matrices; the paper's is 1."""
    factor_rate: float = 4 / 3
    """Learning rate of the matrices by the prompt's: the paper's 0.4 to 0.3."""
    distill: float = 0.9
    """Weight of the distance to the teachers, on their logits (KL divergence) and on the last hidden states (mean
    square), both where the answers are; 0 trains without teachers."""
    teacher_share: float = 0.5
    """Part of the budget that trains the teachers."""
    peft_init: bool = False
    """Start the factors at N(0, 0.02^2) as peft does, which makes every prompt nearly zero; otherwise around a matrix
    of ones, so that prompts start as the shared one."""

    def __post_init__(self) -> None:
        self.check_prompt()
        check(self, "rank", holds=self.rank >= 1, allowed="a whole number of at least 1")
        check(self, "factor_rate", holds=0 < self.factor_rate < math.inf, allowed="above 0")
        check(self, "distill", holds=0 <= self.distill < math.inf, allowed="a number of at least 0")
        check(self, "teacher_share", holds=0 < self.teacher_share < 1, allowed="above 0 and below 1")

    def refuse(self, setup: Setup) -> str | None:
        if self.distill and setup.total_steps < 2:
            return "teachers and the shared prompt need a step each: raise steps or epochs, or take distill=0."
        return None

    def prompts(self, model: torch.nn.Module, setup: Setup) -> nn.PromptSource:

        shared = self.start(model, setup, count=1)[0]
        length, width = shared.shape
        draw, tasks = nn.seeded_generator(setup.seed, "mpt"), len(setup.tasks)
        rows = self._factors((tasks, length, self.rank), draw)
        columns = self._factors((tasks, self.rank, width), draw)
        taught = setup.sources or tasks
        teachers = shared.expand(taught, -1, -1).clone() if self.distill else None
        return nn.FactoredPrompts(shared, rows, columns, setup.routing, teachers)

    def _factors(self, shape: tuple[int, ...], draw: Any) -> Tensor:
        import torch

        noise = torch.randn(shape, generator=draw) * NOISE
        return noise if self.peft_init else noise + self.rank**-0.5

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        super().attach(model, setup)
        nn.attach_state(model, SourceTasks(setup.sources))

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        source: Any = prompt_of(model).source
        rate = self.rate(model, learning_rate)
        return [
            {"params": [p for p in (source.shared, source.teachers) if p is not None], "lr": rate, "weight_decay": 0.0},
            {"params": [source.rows, source.columns], "lr": rate * self.factor_rate, "weight_decay": 0.0},
        ]

    def row_losses(self, model: torch.nn.Module, answers: Answers) -> Tensor:
        import torch

        source: Any = prompt_of(model).source
        if source.teachers is None or source.teaching or not model.training:
            return answers.losses()
        source.teaching = True
        model.eval()
        try:
            with torch.no_grad():
                taught = answers.read()
        finally:
            source.teaching = False
            model.train()
        own = answers.read()
        lacking = nn.kl_divergence(own.logits, taught.logits) + nn.hidden_state_mse(own.hidden, taught.hidden)
        return answers.by_row(answers.token_losses(own.logits) + self.distill * lacking)

    def fit(self, model: torch.nn.Module, trainer: Trainer) -> None:
        source: Any = prompt_of(model).source
        if source.teachers is None:
            trainer.run()
            return
        source.teaching = True
        try:
            trainer.run(share=self.teacher_share)
        finally:
            source.teaching = False
        trainer.run(share=1 - self.teacher_share)
        source.teachers = None

    def adapt(self, model: torch.nn.Module, trainer: Trainer) -> None:
        known = nn.get_state(model, SourceTasks).count
        source: Any = prompt_of(model).source
        source.start_from(slice(known), slice(known, None))
        trainer.run()

    def finish(self, model: torch.nn.Module) -> None:
        """Multiply the prompts out."""
        prompt = prompt_of(model)
        source: Any = prompt.source
        prompt.feed(source.static())


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Mpt]
