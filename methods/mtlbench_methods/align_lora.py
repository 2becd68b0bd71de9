"""Align-LoRA: one LoRA for all tasks, whose low-rank representations of the tasks are drawn together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench_methods.lora import Lora
from mtlbench_methods.settings import check

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mtlbench import RowSums

EPSILON = 1e-8
"""Added to variances."""


@dataclass(frozen=True)
class TaskCount:
    """How many tasks there are; kept with the model."""

    tasks: int


@dataclass(frozen=True, kw_only=True)
class AlignLora(Lora):
    """LoRA, with ``align`` times the distance between the tasks' distributions of ``A x`` in the loss.

    In every adapted linear the tokens of a task are a normal distribution with a diagonal covariance; the distance of
    two tasks is the symmetric Kullback-Leibler divergence, half of both directions, summed over the rank. It is
    averaged over the pairs of tasks that a step holds, and over the linears.

    Follows the repository's ``KL_Trainer``; the paper was not at hand, and its other distance (MMD) is not offered.
    Defaults are those of the training script: rank 8, alpha 32, dropout 0.1, feed-forward projections, weight 0.2.
    Deviation: mean and variance are over all tokens of a task's rows in the step, without padding; the code takes them
    over rows for each position of padded rows, which needs several rows of one length of every task. The decoder of an
    encoder-decoder is left out: its tokens may all be one, whose distribution has no width. ``A x`` is without dropout.
    As after LoRA, nothing is left to compute at inference.
    """

    name: ClassVar[str] = "align_lora"
    source: ClassVar[str] = "jinda-liu/Align-LoRA@c114a05:custom.py, train.py"

    rank: int = 8
    target: str = "ffn"
    """``ffn``, ``attention``, ``all``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""
    align: float = 0.2
    """Weight of the distance; 0 is LoRA."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "align", holds=0 <= self.align < float("inf"), allowed="a number of at least 0")

    @property
    def has_auxiliary_loss(self) -> bool:
        return self.align > 0

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        nn.attach_state(model, TaskCount(len(setup.tasks)))
        of = partial(factors, scale=self.alpha / (self.rank**0.5 if self.rslora else self.rank))

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw = nn.seeded_generator(setup.seed, name)
            parameters = {
                "down": nn.kaiming_uniform((self.rank, base.in_features), base.in_features, draw),
                "up": torch.zeros(base.out_features, self.rank),
            }
            answers = setup.architecture == "seq2seq" and "decoder" in nn.layer_of(name)[0].split(".")
            aligned = self.align > 0 and not answers
            return nn.LowRankLinear(base, parameters, of, dropout=self.dropout, reads_input=aligned)

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)

    def auxiliary_loss(self, sums: Mapping[str, RowSums], tasks: Tensor, model: torch.nn.Module) -> Tensor:
        import torch

        count = nn.get_state(model, TaskCount).tasks
        return self.align * torch.stack([distance(layer, tasks, count) for layer in sums.values()]).mean()


def distance(sums: RowSums, tasks: Tensor, count: int) -> Tensor:
    """Mean symmetric divergence of the pairs of tasks with two tokens or more; zero where there is no pair.

    Args:
        sums: Of ``A x`` and its square ``[rows, 2 * rank]``.
        tasks: Task ids ``[rows]``.
        count: Of tasks.
    """
    import torch

    values = sums.values.new_zeros(count, sums.values.shape[1]).index_add(0, tasks, sums.values)
    tokens = sums.tokens.new_zeros(count).index_add(0, tasks, sums.tokens).unsqueeze(1)
    first, second = values.chunk(2, dim=1)
    mean = first / tokens.clamp(min=1)
    variance = ((second - tokens * mean.square()) / (tokens - 1).clamp(min=1)).clamp(min=0) + EPSILON
    apart = (mean.unsqueeze(0) - mean.unsqueeze(1)).square()
    # of both directions the logarithms of the variances cancel
    one_way = ((variance.unsqueeze(1) + apart) / variance.unsqueeze(0) - 1).sum(-1) / 2
    there = (tokens >= 2).squeeze(1)
    pairs = torch.triu(there.unsqueeze(0) & there.unsqueeze(1), diagonal=1)
    both = torch.where(pairs, (one_way + one_way.t()) / 2, torch.zeros_like(one_way))
    return both.sum() / pairs.sum().clamp(min=1)


def factors(parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, scale: float) -> nn.Factors:
    """``down [rank, in]`` and ``up [out, rank]``, with ``A x`` and its square reported."""
    import torch

    down, report = parameters["down"], None
    if rows.reports and rows.input is not None:
        low = torch.nn.functional.linear(rows.x, down.to(rows.x.dtype))
        low = low.to(torch.promote_types(low.dtype, torch.float32))
        report = torch.cat([low, low.square()], dim=-1)
    return nn.Factors(down=down, up=parameters["up"], scale=scale, report=report)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [AlignLora]
