"""MoELoRA: low-rank experts gated by the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Value, hookimpl, nn
from mtlbench_methods.settings import check, check_low_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor


GATE = ("tasks", "gate")
"""Task embeddings and the gate that reads them."""


@dataclass(frozen=True, kw_only=True)
class MoeLora(Method):
    """``y = W x + b + alpha/rank sum_e softmax_e(G emb_t) B_e A_e dropout(x)`` for a row of task t.

    The experts share the total rank: each has ``rank / experts``. Every layer has its own gate, as in the tables of the
    MTL-LoRA paper; the original paper has one gate for all layers (``shared_gate``). Defaults follow the MTL-LoRA
    authors' script: 8 experts of rank 1, dropout 0.05, attention projections only. It is the row ``MoELoRA`` of PEML's
    Tables 2 and 6; ``MOE-LoRA`` of its Tables 4 and 9 is another one, ``molora``.
    """

    name: ClassVar[str] = "moelora"
    source: ClassVar[str] = (
        "Liu et al. 2024, arXiv:2310.18339; liuqidong07/MOELoRA-peft@2d9efa4:src/MLoRA/peft/tuners/mmoelora{,S}.py; "
        "pUmpKin-Co/MTL-LoRA@7848a70:src/adapter/moelora.py"
    )
    task_routed: ClassVar[bool] = True
    size_field: ClassVar[str] = "rank"

    rank: int = 8
    """Of all experts together."""
    experts: int = 8
    alpha: float = 16.0
    task_width: int = 64
    """Width of the task embeddings."""
    shared_gate: bool = False
    """One gate for all layers, as in the original paper, instead of one per layer."""
    masks: str = "one"
    """Dropout masks: ``one`` for all experts, or ``per_expert`` as the reference draws them, which keeps a dropped copy
    of the input for every expert."""
    dropout: float = 0.05
    target: str = "attention"
    """``all``, ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        check(self, "experts", holds=self.experts >= 1, allowed="a whole number of at least 1")
        check(
            self,
            "rank",
            holds=self.rank % self.experts == 0,
            allowed=f"a multiple of experts={self.experts}, which share it",
        )
        check(self, "task_width", holds=self.task_width >= 1, allowed="a whole number of at least 1")
        check(self, "masks", holds=self.masks in ("one", "per_expert"), allowed="one or per_expert")

    def sized(self, size: int, setup: Setup) -> Mapping[str, Value]:
        """``size`` is the rank of each expert."""
        return {"rank": size * self.experts}

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        rank = self.rank
        of = partial(factors, experts=self.experts, scale=self.alpha / rank)
        device = next(model.parameters()).device
        shared = {
            name: torch.nn.Parameter(value.to(device))
            for name, value in self._gate(len(setup.tasks), nn.seeded_generator(setup.seed, "gate")).items()
        }

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw = nn.seeded_generator(setup.seed, name)
            parameters = {
                "down": 0.01 * torch.randn(rank, base.in_features, generator=draw),
                "up": torch.zeros(base.out_features, rank),
                **(shared if self.shared_gate else self._gate(len(setup.tasks), draw)),
            }
            if self.masks == "per_expert":
                return nn.ExpertDropoutLinear(
                    base, parameters, of, experts=self.experts, routing=setup.routing, dropout=self.dropout
                )
            return nn.LowRankLinear(base, parameters, of, routing=setup.routing, dropout=self.dropout)

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)

    def _gate(self, tasks: int, draw: torch.Generator) -> dict[str, Tensor]:
        import torch

        return {
            "tasks": torch.randn(tasks, self.task_width, generator=draw),
            "gate": nn.kaiming_uniform((self.experts, self.task_width), self.task_width, draw),
        }

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return nn.optimizer_groups(model, learning_rate, no_decay=GATE)

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """For one task, as a LoRA of the same rank."""
        nn.export_lora(model, folder, task=task, dropout=self.dropout)


def factors(parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, experts: int, scale: float) -> nn.Factors:
    """``down [rank, in]`` and ``up [out, rank]`` hold all experts, gated by task.

    Args:
        parameters: Those two, ``tasks [tasks, width]`` and ``gate [experts, width]``.
    """
    import torch

    down = parameters["down"]
    shares = torch.softmax(parameters["tasks"] @ parameters["gate"].t(), dim=-1)
    by_task = shares.repeat_interleave(down.shape[0] // experts, dim=1)
    return nn.Factors(
        down=down, up=parameters["up"], gate=by_task.index_select(0, rows.tasks).unsqueeze(1), scale=scale
    )


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [MoeLora]
