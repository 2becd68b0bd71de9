"""LoRA per task: what each task reaches alone, the reference for transfer between tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from mtlbench import Method, Setup, Trainer, hookimpl, nn
from mtlbench_methods.lora import Lora

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LoraSt(Lora):
    """One LoRA per task, trained one task after another on that task's rows alone.

    A task gets the share of the budget that it has in the mixture, so that all tasks together see as many rows and
    steps as the joint run, with an optimizer, a schedule and early stopping of its own. The result is that of separate
    single-task ``lora`` runs with these budgets, in one cell.
    """

    name: ClassVar[str] = "lora_st"
    resumable: ClassVar[bool] = True
    source: ClassVar[str] = "Hu et al. 2022, arXiv:2106.09685; pUmpKin-Co/MTL-LoRA@7848a70:lora_finetune_single.py"
    composable: ClassVar[bool] = False
    task_routed: ClassVar[bool] = True

    def refuse(self, setup: Setup) -> str | None:
        if setup.sources:
            return "its tasks share nothing, so nothing of the sources reaches a target. Take lora, or leave it out."
        if setup.total_steps < len(setup.tasks):
            return (
                f"{setup.total_steps} steps cannot be shared by {len(setup.tasks)} tasks that train one after another: "
                "raise steps or epochs."
            )
        return None

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        stage = Stage(tasks=len(setup.tasks))
        nn.attach_state(model, stage)
        of = partial(factors, stage=stage, scale=self.alpha / (self.rank**0.5 if self.rslora else self.rank))

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            # every task starts where `lora` starts
            down = nn.kaiming_uniform(
                (self.rank, base.in_features), base.in_features, nn.seeded_generator(setup.seed, name)
            )
            parameters = {}
            for task in range(len(setup.tasks)):
                parameters[f"down_{task}"] = down.clone()
                parameters[f"up_{task}"] = torch.zeros(base.out_features, self.rank)
            return nn.LowRankLinear(base, parameters, of, routing=setup.routing, dropout=self.dropout)

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)

    def fit(self, model: torch.nn.Module, trainer: Trainer) -> None:
        stage = nn.get_state(model, Stage)
        try:
            for task in range(stage.tasks):
                stage.task = task
                trainer.run(tasks=[task])
        finally:
            stage.task = None

    def finish(self, model: torch.nn.Module) -> None:
        """Merge nothing: every task keeps its own weights. For one task ``nn.merge_low_rank(model, task)`` does."""


@dataclass
class Stage:
    """Which task trains at the moment; kept with the model."""

    tasks: int
    task: int | None = None
    """``None``: rows of any task may come."""


def factors(parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, stage: Stage, scale: float) -> nn.Factors:
    """``down_t [rank, in]`` and ``up_t [out, rank]`` of the task in training, otherwise those of each row's task."""
    import torch

    if stage.task is not None:
        return nn.Factors(parameters[f"down_{stage.task}"], parameters[f"up_{stage.task}"], scale=scale)
    down, up = (
        torch.stack([parameters[f"{name}_{task}"] for task in range(stage.tasks)]).index_select(0, rows.tasks)
        for name in ("down", "up")
    )
    return nn.Factors(down, up, scale=scale)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [LoraSt]
