"""MultiLoRA: several LoRAs side by side, each with a learned scale per output."""

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


@dataclass(frozen=True, kw_only=True)
class MultiLora(Method):
    """``y = W x + b + alpha/rank sum_j s_j * (B_j A_j dropout(x))``, the same for every task.

    ``A`` and ``B`` are Kaiming-uniform and the scales ``s`` start at zero, so the first step moves the scales alone.
    It is a LoRA of rank ``modules * rank``: the scales are multiplied into the up-projections, and nothing as wide as
    the output is kept for the backward. The authors' code is not public; the reference is the baseline of the MTL-LoRA
    authors, without the untrained random bias it gives to layers that have none.
    """

    name: ClassVar[str] = "multilora"
    source: ClassVar[str] = "Wang et al. 2023, arXiv:2311.11501; pUmpKin-Co/MTL-LoRA@7848a70:src/adapter/multilora.py"
    size_field: ClassVar[str] = "rank"

    rank: int = 32
    """Of each module."""
    modules: int = 3
    alpha: float = 32.0
    """Numerator of the fixed scale ``alpha / rank``; the default makes it one."""
    dropout: float = 0.05
    target: str = "all"
    """``all``, ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        check(self, "modules", holds=self.modules >= 1, allowed="a whole number of at least 1")

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        n, rank = self.modules, self.rank
        of = partial(factors, scale=self.alpha / rank)

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw = nn.seeded_generator(setup.seed, name)
            parameters = {
                "down": nn.kaiming_uniform((n, rank, base.in_features), base.in_features, draw),
                "up": nn.kaiming_uniform((base.out_features, n, rank), rank, draw),
                "scale": torch.zeros(base.out_features, n),
            }
            return nn.LowRankLinear(base, parameters, of, dropout=self.dropout)

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return nn.optimizer_groups(model, learning_rate, no_decay=("scale",))

    def finish(self, model: torch.nn.Module) -> None:
        """Merge: nothing is left to compute at inference."""
        nn.merge_low_rank(model)

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """As a LoRA of rank ``modules * rank``."""
        nn.export_lora(model, folder, task=task, dropout=self.dropout)


def factors(parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, scale: float) -> nn.Factors:
    """``down [modules, rank, in]``, ``up [out, modules, rank]`` and ``scale [out, modules]`` as one wide LoRA."""
    down, up = parameters["down"].flatten(0, 1), parameters["up"].flatten(1)
    return nn.Factors(down=down, up=up, up_scale=parameters["scale"], scale=scale)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [MultiLora]
