"""LoRI: a frozen random down-projection, and for each task a sparse up-projection, chosen in a first stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Trainer, hookimpl, nn
from mtlbench_methods.settings import check, check_low_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Lori(Method):
    """``y = W x + b + alpha/rank (M_t * B_t) A dropout(x)`` for a row of task t: ``A`` is random and stays frozen.

    In the first stage (LoRI-D) every ``B_t`` is trained in full. Then ``M_t`` keeps, of all elements of the task's
    ``B`` in the whole model, the ``1 - sparsity`` of the largest absolute value, ``B`` is set to zero, and the second
    stage (LoRI-S) trains what is kept. ``sparsity=0`` is the first stage alone.

    Defaults follow the script for commonsense tasks: rank 32, alpha 64, sparsity 0.9, a first stage with a tenth of the
    second one's learning rate (5e-5 and 5e-4 there). There each stage takes the same number of epochs; here both share
    the budget (``mask_share``). ``A`` is Kaiming-uniform as in peft, all projections are adapted and there is no
    dropout (assumed: the training script was not at hand). Deviations: tasks train together in mixed batches, which is
    the same as apart but for the steps that each gets, since they share nothing that trains; exactly the given share is
    kept where several elements are equal; what is masked is stored, as zeros.

    The official repository was read in a copy, jayus71/LoRI; we have not compared it with juzhengz/LoRI.
    """

    name: ClassVar[str] = "lori"
    source: ClassVar[str] = (
        "Zhang et al. 2025, arXiv:2504.07448; jayus71/LoRI@f09dbe8:src/extract_mask.py, "
        "@0e143ea:scripts/nlu_llama3_r_32.sh (a copy of juzhengz/LoRI)"
    )
    resumable: ClassVar[bool] = True
    task_routed: ClassVar[bool] = True
    size_field: ClassVar[str] = "rank"

    rank: int = 32
    alpha: float = 64.0
    sparsity: float = 0.9
    """Share of each task's ``B`` that stays zero in the second stage; 0 omits that stage."""
    mask_share: float = 0.5
    """Share of the budget of the first stage."""
    mask_rate_ratio: float = 0.1
    """Learning rate of the first stage as a multiple of that of the second."""
    dropout: float = 0.0
    target: str = "all"
    """``all``, ``attention``, ``ffn``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        check(self, "sparsity", holds=0 <= self.sparsity < 1, allowed="at least 0 and below 1")
        check(self, "mask_share", holds=0 < self.mask_share < 1, allowed="above 0 and below 1")
        check(self, "mask_rate_ratio", holds=0 < self.mask_rate_ratio < float("inf"), allowed="a number above 0")

    def refuse(self, setup: Setup) -> str | None:
        if setup.sources:
            return "its tasks share nothing that trains, so nothing of the sources reaches a target. Take lora."
        if self.sparsity and setup.total_steps < 2:
            return f"{setup.total_steps} steps cannot be shared by two stages: raise steps or epochs."
        return None

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        tasks, rank, names = len(setup.tasks), self.rank, nn.select_linears(setup.target_modules, self.target)
        shapes = {name: (tasks, setup.shapes[name][0], rank) for name in names}
        masks = nn.ParameterMasks(shapes, device=next(model.parameters()).device)

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            down = nn.kaiming_uniform((rank, base.in_features), base.in_features, nn.seeded_generator(setup.seed, name))
            parameters = {
                "down": torch.nn.Parameter(down.to(base.weight.device), requires_grad=False),
                "up": torch.zeros(shapes[name]),
            }
            of = partial(factors, masks=masks, name=name, scale=self.alpha / rank)
            return nn.LowRankLinear(base, parameters, of, routing=setup.routing, dropout=self.dropout)

        nn.adapt(model, names, make)
        nn.attach_module(model, "mtlbench_masks", masks)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        first = self.sparsity > 0 and not nn.get_module(model, nn.ParameterMasks).on
        return super().param_groups(model, self.mask_rate_ratio * learning_rate if first else learning_rate)

    def fit(self, model: torch.nn.Module, trainer: Trainer) -> None:
        if not self.sparsity:
            trainer.run()
            return
        import torch

        steps = trainer.total_steps
        first = min(max(1, round(self.mask_share * steps)), steps - 1)
        trainer.run(share=first / steps)
        masks = nn.get_module(model, nn.ParameterMasks)
        ups = {
            layer.name: layer.get_parameter("up") for layer in model.modules() if isinstance(layer, nn.LowRankLinear)
        }
        masks.choose(ups, density=1 - self.sparsity)
        with torch.no_grad():
            for up in ups.values():
                up.zero_()
        trainer.run(share=(steps - first) / steps)
        masks.release()

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """For one task, as a LoRA of the same rank."""
        nn.export_lora(model, folder, task=task, dropout=self.dropout)


def factors(
    parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, masks: nn.ParameterMasks, name: str, scale: float
) -> nn.Factors:
    """``down [rank, in]`` of all tasks, and of ``up [tasks, out, rank]`` what the masks of ``name`` leave."""
    up = masks.masked(name, parameters["up"])
    return nn.Factors(down=parameters["down"], up=up.index_select(0, rows.tasks), scale=scale)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Lori]
