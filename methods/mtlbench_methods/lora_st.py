"""LoRA per task: what each task reaches alone, the reference for transfer between tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Trainer, hookimpl
from mtlbench_methods.lora import Lora

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mtlbench.nn.low_rank.layer import Factors, LowRankLinear, Rows


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

    def attach(self, model: nn.Module, setup: Setup) -> None:
        import torch

        from mtlbench.nn.linears import select
        from mtlbench.nn.low_rank.layer import LowRankLinear, adapt, generator, kaiming

        host: Any = model
        stage = host.mtlbench_stage = Stage(tasks=len(setup.tasks))
        of = partial(factors, stage=stage, scale=self.alpha / (self.rank**0.5 if self.rslora else self.rank))

        def make(name: str, base: nn.Linear) -> LowRankLinear:
            # every task starts where `lora` starts
            down = kaiming((self.rank, base.in_features), base.in_features, generator(setup.seed, name))
            parameters = {}
            for task in range(len(setup.tasks)):
                parameters[f"down_{task}"] = down.clone()
                parameters[f"up_{task}"] = torch.zeros(base.out_features, self.rank)
            return LowRankLinear(base, parameters, of, routing=setup.routing, dropout=self.dropout)

        adapt(model, select(setup.target_modules, self.target), make)

    def fit(self, model: nn.Module, trainer: Trainer) -> None:
        host: Any = model
        stage: Stage = host.mtlbench_stage
        try:
            for task in range(stage.tasks):
                stage.task = task
                trainer.run(tasks=[task])
        finally:
            stage.task = None

    def finish(self, model: nn.Module) -> None:
        """Merge nothing: every task keeps its own weights. For one task ``lowrank.merge(model, task)`` does."""


@dataclass
class Stage:
    """Which task trains at the moment; lives in the model."""

    tasks: int
    task: int | None = None
    """``None``: rows of any task may come."""


def factors(parameters: Mapping[str, Tensor], rows: Rows, *, stage: Stage, scale: float) -> Factors:
    """``down_t [rank, in]`` and ``up_t [out, rank]`` of the task in training, otherwise those of each row's task."""
    import torch

    from mtlbench.nn.low_rank.layer import Factors

    if stage.task is not None:
        return Factors(parameters[f"down_{stage.task}"], parameters[f"up_{stage.task}"], scale=scale)
    down, up = (
        torch.stack([parameters[f"{name}_{task}"] for task in range(stage.tasks)]).index_select(0, rows.tasks)
        for name in ("down", "up")
    )
    return Factors(down, up, scale=scale)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [LoraSt]
