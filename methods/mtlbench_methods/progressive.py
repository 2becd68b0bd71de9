"""Progressive task-specific adaptation: LoRA that all tasks share in early layers and fewer and fewer in later ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Trainer, hookimpl, nn
from mtlbench_methods.settings import check, check_low_rank

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Progressive(Method):
    """``y = W x + b + alpha/rank B_g A_g dropout(x)`` with the group ``g`` of the row's task in the layer's stage.

    The layers, an encoder's before a decoder's, are cut into stages of equal depth with 1, T/4, T/2 and T groups of
    tasks, each a split of those before it. A warm-up trains one LoRA for all tasks; in its second half the gradients of
    its ``B`` are kept apart by task, and tasks whose gradients point the same way are grouped by average linkage. Each
    group goes on from the shared LoRA.

    The paper is about vision backbones and no code is public; numbers of stages, groups and steps are our decisions.
    """

    name: ClassVar[str] = "progressive"
    source: ClassVar[str] = (
        "Gangwar et al. 2026, arXiv:2509.19602: similarity of gradients, shared to specific by depth"
    )
    task_routed: ClassVar[bool] = True
    resumable: ClassVar[bool] = True
    composable: ClassVar[bool] = False
    """Its parameters are others after the warm-up."""
    size_field: ClassVar[str] = "rank"

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1
    target: str = "all"
    """``all``, ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""
    stages: int = 4
    """With fewer layers some have none."""
    warmup_share: float = 0.2
    """Share of the steps with one LoRA for all tasks. At least two, as the first knows no direction."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        check(self, "stages", holds=2 <= self.stages <= 16, allowed="a whole number from 2 to 16")
        check(self, "warmup_share", holds=0 < self.warmup_share < 1, allowed="above 0 and below 1")

    def refuse(self, setup: Setup) -> str | None:
        if setup.sources:
            return (
                "it groups all its tasks by their gradients before any has a part of its own, and a target that comes "
                "later is in no group. Take ta_lora, mtl_lora or lora, or leave it out."
            )
        if setup.total_steps < 3:
            return f"{setup.total_steps} steps have no room for a warm-up of two and the rest: raise steps or epochs."
        return None

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        names = nn.select_linears(setup.target_modules, self.target)

        def make(name: str, base: torch.nn.Linear) -> nn.BranchingLinear:
            parameters = {
                "down": nn.kaiming_uniform(
                    (self.rank, base.in_features), base.in_features, nn.seeded_generator(setup.seed, name)
                ),
                "up": torch.zeros(base.out_features, self.rank),
            }
            return nn.BranchingLinear(
                base,
                parameters,
                tasks=len(setup.tasks),
                scale=self.alpha / self.rank,
                routing=setup.routing,
                dropout=self.dropout,
            )

        nn.adapt(model, names, make)
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.BranchingLinear)}
        nn.attach_module(model, "mtlbench_gradients", nn.TaskGradients(self._cut(linears), len(setup.tasks)))

    def _cut(self, linears: dict[str, nn.BranchingLinear]) -> list[list[nn.BranchingLinear]]:
        """The linears of each stage."""
        places = list(dict.fromkeys(nn.layer_of(name) for name in linears))
        stages: list[list[nn.BranchingLinear]] = [[] for _ in range(self.stages)]
        for name, linear in linears.items():
            stages[places.index(nn.layer_of(name)) * self.stages // len(places)].append(linear)
        return stages

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """A probe gets gradients and never moves."""
        named = [(name.rpartition(".")[2], p) for name, p in model.named_parameters() if p.requires_grad]
        trained, probes = ([p for name, p in named if (name == "probe") == probe] for probe in (False, True))
        return [{"params": trained, "lr": learning_rate}, {"params": probes, "lr": 0.0, "weight_decay": 0.0}]

    def fit(self, model: torch.nn.Module, trainer: Trainer) -> None:

        gradients = nn.get_module(model, nn.TaskGradients)
        steps = trainer.total_steps
        warmup = min(max(2, round(self.warmup_share * steps)), steps - 1)
        gradients.first_step = warmup // 2
        trainer.run(share=warmup / steps, patience_from=warmup + 1)
        gradients.branch(nn.branch_counts(self.stages, gradients.tasks))
        nn.remove_module(model, nn.TaskGradients)
        trainer.run(share=(steps - warmup) / steps)

    def after_step(self, model: torch.nn.Module, step: int) -> None:
        gradients = nn.find_module(model, nn.TaskGradients)
        if gradients is not None:
            gradients.look(step)

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """For one task, as a LoRA of the same rank."""
        nn.export_lora(model, folder, task=task, dropout=self.dropout)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Progressive]
