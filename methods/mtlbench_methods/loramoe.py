"""LoRAMoE: LoRA experts for every token, in two groups that a localized balancing constraint keeps apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench_methods.molora import token_shares
from mtlbench_methods.settings import check, check_low_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mtlbench import RowSums


@dataclass(frozen=True)
class KnowledgeTasks:
    """Which tasks are of the first kind; kept with the model."""

    by_task: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class LoraMoe(Method):
    """``y = W x + b + alpha/rank sum_e p_e B_e A_e dropout(x)`` with ``p = softmax(G x)``, and a constraint on ``p``.

    The localized balancing constraint is, in every adapted linear, the squared coefficient of variation of ``Z[row, e]
    = I[row, e] * Q[row, e]`` over the rows of a step and the experts: ``Q`` is what the expert gets of the row, ``I``
    is ``1 + delta`` where the expert and the row are of one kind and ``1 - delta`` elsewhere. The first half of the
    experts is for rows of the tasks in ``knowledge``, the other half for all others. Without ``knowledge`` there is one
    kind of rows, ``I`` is 1, and the constraint is a plain balance of all experts.

    Defaults follow the official script: 8 experts of rank 4, alpha 32, dropout 0.05, feed-forward projections; ``A``
    and the router Kaiming-uniform, ``B`` zero. The script switches the constraint off (it is for debugging); 0.1 for
    its weight and for ``delta`` is what we take the paper to say (assumed: it was not at hand). As in the code, the
    variance divides by one less than the count, ``1e-10`` is added to the squared mean, and the constraints of all
    linears are added up. Deviations: ``Q`` is the mean over the row's tokens without padding, where the code sums over
    the padded row, which is a factor that the constraint does not see; the rows of the whole step count together, where
    the code takes those of a micro-batch.
    """

    name: ClassVar[str] = "loramoe"
    source: ClassVar[str] = (
        "Dou et al. 2024, arXiv:2312.09979; Ablustrund/LoRAMoE@a2470ef:peft/tuners/lora.py, "
        "transformers/models/llama/modeling_llama.py, run_loramoe.sh"
    )
    size_field: ClassVar[str] = "rank"

    rank: int = 4
    """Of each expert."""
    experts: int = 8
    alpha: float = 32.0
    balance: float = 0.1
    """Weight of the constraint; 0 omits it."""
    delta: float = 0.1
    """How far apart the two kinds are kept."""
    knowledge: str = ""
    """Tasks of the first kind (world knowledge), joined by ``+``, such as ``glue/qnli+glue/rte``."""
    dropout: float = 0.05
    target: str = "ffn"
    """``ffn``, ``attention``, ``all``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        check(self, "experts", holds=self.experts >= 1, allowed="a whole number of at least 1")
        check(self, "balance", holds=0 <= self.balance < float("inf"), allowed="a number of at least 0")
        check(self, "delta", holds=0 <= self.delta < 1, allowed="at least 0 and below 1")
        two = not self.knowledge or self.experts % 2 == 0
        check(self, "experts", holds=two, allowed="even with knowledge, which halves them")

    @property
    def has_auxiliary_loss(self) -> bool:
        return self.balance > 0

    def refuse(self, setup: Setup) -> str | None:
        known = [task.name for task in setup.tasks]
        unknown = [name for name in self._knowledge() if name not in known]
        if unknown:
            return f"knowledge names {', '.join(unknown)}, and the tasks are {', '.join(known)}."
        return None

    def _knowledge(self) -> list[str]:
        return self.knowledge.split("+") if self.knowledge else []

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        named = self._knowledge()
        nn.attach_state(model, KnowledgeTasks(tuple(task.name in named for task in setup.tasks)))
        wide = self.experts * self.rank
        of = partial(factors, rank=self.rank, scale=self.alpha / self.rank)

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw = nn.seeded_generator(setup.seed, name)
            parameters = {
                "down": nn.kaiming_uniform((wide, base.in_features), base.in_features, draw),
                "up": torch.zeros(base.out_features, wide),
                "router": nn.kaiming_uniform((self.experts, base.in_features), base.in_features, draw),
            }
            return nn.LowRankLinear(base, parameters, of, dropout=self.dropout, reads_input=True)

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return nn.optimizer_groups(model, learning_rate, no_decay=("router",))

    def auxiliary_loss(self, sums: Mapping[str, RowSums], tasks: Tensor, model: torch.nn.Module) -> Tensor:
        import torch

        kinds = nn.get_state(model, KnowledgeTasks).by_task
        knowledge = torch.tensor(kinds).to(tasks.device, non_blocking=True).index_select(0, tasks)
        delta = self.delta if any(kinds) else 0.0
        return self.balance * torch.stack([constraint(layer, knowledge, delta=delta) for layer in sums.values()]).sum()


def constraint(sums: RowSums, knowledge: Tensor, *, delta: float) -> Tensor:
    """The constraint of one linear.

    Args:
        sums: Of the experts' shares.
        knowledge: Which rows are of the first kind ``[rows]``.
    """
    import torch

    used = sums.values / sums.tokens.clamp(min=1).unsqueeze(1)
    first = torch.arange(used.shape[1], device=used.device) < used.shape[1] // 2
    same = first == knowledge.unsqueeze(1)
    z = used * torch.where(same, 1 + delta, 1 - delta)
    if z.numel() < 2:
        return z.sum() * 0
    return z.var() / (z.mean().square() + 1e-10)


def factors(parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, rank: int, scale: float) -> nn.Factors:
    """``down [experts * rank, in]`` and ``up [out, experts * rank]`` of all experts; ``router [experts, in]``."""
    shares = token_shares(rows.x, parameters["router"])
    return nn.Factors(
        down=parameters["down"],
        up=parameters["up"],
        gate=shares.repeat_interleave(rank, dim=-1),
        scale=scale,
        report=shares if rows.reports else None,
    )


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [LoraMoe]
