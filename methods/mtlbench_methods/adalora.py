"""AdaLoRA: one budget of ranks for the whole model, moved in training to the layers that need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mtlbench import Method, Setup, Trainer, Value, hookimpl, nn
from mtlbench_methods.settings import check, check_low_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AdaLora(Method):
    """``y = W x + b + alpha / init_rank * B (E * A) dropout(x)``; triplets of low importance get ``E = 0``.

    The budget falls from ``init_rank`` to ``target_rank`` per layer on average and is really allocated: peft leaves
    that to a call in the user's loop, and ignores its own ``r``. As in peft and the official code the scale stays that
    of ``init_rank``. The training loss contains the orthogonality penalty; row losses and evaluation do not. States
    before the budget is settled are never kept.
    """

    name: ClassVar[str] = "adalora"
    resumable: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Zhang et al. 2023, arXiv:2303.10512, Algorithm 1; QingruZhang/AdaLoRA; "
        "huggingface/peft 0.21.2: peft.tuners.adalora"
    )
    size_field: ClassVar[str] = "init_rank"

    init_rank: int = 12
    """Triplets per layer at the start."""
    target_rank: int = 8
    """Triplets per layer at the end, on average."""
    alpha: float = 32.0
    dropout: float = 0.1
    target: str = "all"
    """``all``, ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""
    prune_from: float = 0.1
    """Share of the steps after which triplets begin to fall out (in steps: peft's ``tinit``)."""
    prune_until: float = 0.6
    """Share of the steps after which the ranks are settled (peft's ``total_step - tfinal``)."""
    delta_t: int = 1
    """Steps between two allocations."""
    beta1: float = 0.85
    """Smoothing of the importance."""
    beta2: float = 0.85
    """Smoothing of its uncertainty."""
    orthogonal: float = 0.5
    """Weight of the mean of ``|A A^T - I|`` and ``|B^T B - I|``; the authors' scripts take 0.1."""

    @property
    def rank(self) -> int:
        """Rank of the layers as attached."""
        return self.init_rank

    def __post_init__(self) -> None:
        whole = "a whole number of at least 1"
        check(self, "init_rank", holds=self.init_rank >= 1, allowed=whole)
        check_low_rank(self)
        below = f"a whole number from 1 to init_rank={self.init_rank}"
        check(self, "target_rank", holds=1 <= self.target_rank <= self.init_rank, allowed=below)
        check(self, "prune_from", holds=0 <= self.prune_from < 1, allowed="at least 0 and below 1")
        after = f"above prune_from={self.prune_from} and at most 1"
        check(self, "prune_until", holds=self.prune_from < self.prune_until <= 1, allowed=after)
        check(self, "delta_t", holds=self.delta_t >= 1, allowed=whole)
        check(self, "beta1", holds=0 < self.beta1 < 1, allowed="above 0 and below 1")
        check(self, "beta2", holds=0 < self.beta2 < 1, allowed="above 0 and below 1")
        check(self, "orthogonal", holds=0 <= self.orthogonal < float("inf"), allowed="a number of at least 0")

    def sized(self, size: int, setup: Setup) -> Mapping[str, Value]:
        """The budget at the end keeps its share of the one at the start, which is what trains."""
        return {"init_rank": size, "target_rank": max(1, round(size * self.target_rank / self.init_rank))}

    def refuse(self, setup: Setup) -> str | None:
        if setup.total_steps < 2:
            return (
                f"ranks cannot be allocated in {setup.total_steps} steps: raise steps or epochs to at least two steps."
            )
        return None

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        layers: dict[str, nn.TripletLinear] = {}
        of = partial(factors, scale=self.alpha / (self.init_rank + 1e-5))

        def make(name: str, base: torch.nn.Linear) -> nn.TripletLinear:
            draw = nn.seeded_generator(setup.seed, name)
            parameters = {
                "down": 0.02 * torch.randn(self.init_rank, base.in_features, generator=draw),
                "values": torch.zeros(self.init_rank, 1),
                "up": 0.02 * torch.randn(base.out_features, self.init_rank, generator=draw),
            }
            layers[name] = nn.TripletLinear(base, parameters, of, dropout=self.dropout)
            return layers[name]

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)
        schedule = nn.RankSchedule.of(
            setup.total_steps,
            prune_from=self.prune_from,
            prune_until=self.prune_until,
            every=self.delta_t,
            start=self.init_rank * len(layers),
            end=self.target_rank * len(layers),
        )
        budget = nn.RankBudget(layers, schedule, beta1=self.beta1, beta2=self.beta2)
        nn.attach_module(model, "mtlbench_ranks", budget)

    def penalty(self, model: torch.nn.Module) -> Tensor | None:
        """The weighted departure of ``A`` and ``B`` from orthogonality."""
        return self.orthogonal * nn.get_module(model, nn.RankBudget).orthogonality()

    def after_step(self, model: torch.nn.Module, step: int) -> None:
        nn.get_module(model, nn.RankBudget).allocate(step + 1)

    def fit(self, model: torch.nn.Module, trainer: Trainer) -> None:
        budget = nn.get_module(model, nn.RankBudget)
        trainer.keep(budget.memory(), modules=[budget])
        trainer.run(patience_from=budget.schedule.last)

    def finish(self, model: torch.nn.Module) -> None:
        """Merge: nothing is left to compute at inference."""
        nn.get_module(model, nn.RankBudget).close()
        nn.merge_low_rank(model)

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """Write an ordinary LoRA checkpoint whose layers have the ranks they were left with."""
        nn.export_lora(model, folder, dropout=self.dropout)


def factors(parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, scale: float) -> nn.Factors:
    """``down [rank, in]`` scaled by ``values [rank, 1]``, and ``up [out, rank]``."""
    return nn.Factors(down=parameters["values"] * parameters["down"], up=parameters["up"], scale=scale)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [AdaLora]
