"""MTL-LoRA: one shared down-projection, a transform and a mixture of up-projections per task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench_methods.settings import check, check_low_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor


TABLES = ("transform", "logits")
"""Parameters with a row per task."""


@dataclass(frozen=True, kw_only=True)
class MtlLora(Method):
    """``y = W x + b + alpha/rank [sum_i softmax_i(w_t / temperature) B_i] Lambda_t A dropout(x)`` for a row of task t.

    Defaults follow the official commonsense script: rank 8, alpha 16, dropout 0.05, three up-projections, temperature
    0.1, full transforms, attention projections only. The paper's equation has no alpha/rank; the official code has it
    and is followed, but for the untrained random bias it gives to layers that have none.
    """

    name: ClassVar[str] = "mtl_lora"
    source: ClassVar[str] = "Yang et al. 2025, arXiv:2410.09437; pUmpKin-Co/MTL-LoRA@7848a70:src/adapter/mlora.py"
    task_routed: ClassVar[bool] = True
    size_field: ClassVar[str] = "rank"

    rank: int = 8
    alpha: float = 16.0
    ups: int = 3
    """Up-projections that the tasks mix."""
    temperature: float = 0.1
    lambda_format: str = "full"
    """``full`` or ``diagonal`` transforms per task."""
    dropout: float = 0.05
    target: str = "attention"
    """``all``, ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        check(self, "ups", holds=self.ups >= 1, allowed="a whole number of at least 1")
        check(self, "temperature", holds=0 < self.temperature < float("inf"), allowed="a number above 0")
        check(self, "lambda_format", holds=self.lambda_format in ("full", "diagonal"), allowed="full or diagonal")

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        tasks, rank = len(setup.tasks), self.rank
        identity = torch.eye(rank) if self.lambda_format == "full" else torch.ones(rank)
        of = partial(factors, scale=self.alpha / rank, temperature=self.temperature)

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw = nn.seeded_generator(setup.seed, name)
            parameters = {
                "down": nn.kaiming_uniform((rank, base.in_features), base.in_features, draw),
                "transform": identity.expand(tasks, *identity.shape).clone(),
                "up": torch.zeros(base.out_features, self.ups, rank),
                "logits": nn.kaiming_uniform((tasks, self.ups), self.ups, draw),
            }
            return nn.LowRankLinear(base, parameters, of, routing=setup.routing, dropout=self.dropout)

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return nn.optimizer_groups(model, learning_rate, no_decay=TABLES)

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """For one task, as a LoRA of the same rank."""
        nn.export_lora(model, folder, task=task, dropout=self.dropout)


def factors(parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, scale: float, temperature: float) -> nn.Factors:
    """All up-projections side by side, with mixture and transform in one matrix per task ``[tasks, ups * rank, rank]``.

    Args:
        parameters: ``down [rank, in]``, ``transform [tasks, rank, rank]`` or ``[tasks, rank]``,
            ``up [out, ups, rank]``, ``logits [tasks, ups]``.
    """
    import torch

    transform, up = parameters["transform"], parameters["up"]
    if transform.dim() == 2:
        transform = torch.diag_embed(transform)
    shares = torch.softmax(parameters["logits"] / temperature, dim=-1)
    matrix = (shares[:, :, None, None] * transform[:, None]).flatten(1, 2).index_select(0, rows.tasks)
    return nn.Factors(down=parameters["down"], up=up.flatten(1), matrix=matrix, scale=scale)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [MtlLora]
