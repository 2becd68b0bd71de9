"""MixLoRA: every feed-forward block as a sparse mixture of low-rank experts, beside plain LoRA on attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench.errors import RequestError
from mtlbench_methods.lora import factors
from mtlbench_methods.settings import check, check_low_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mtlbench import RowSums


@dataclass(frozen=True, kw_only=True)
class MixLora(Method):
    """``FFN(x) = sum_e p_e FFN_e(x)`` over the ``top_k`` largest of ``softmax(G x)``, which then sum to one.

    Expert ``e`` is the block with ``W + alpha/rank B_e A_e`` in the place of each of its projections, on an input with
    dropout; attention projections have a plain LoRA of the same rank. The products with the frozen weights are shared
    by the experts of a token. The loss of a step has ``balance`` times ``top_k E sum_e f_e P_e``, where ``f_e`` is the
    expert's part of all choices and ``P_e`` its mean probability, over all tokens and blocks together.

    Follows the repository; of the paper only its abstract was at hand. Defaults are those of the README: rank 8, alpha
    16, dropout 0.05, 8 experts, 2 of them for a token, balance 0.01 (where a configuration names none, the code takes
    0.001). ``A`` is Kaiming-uniform, ``B`` zero, the router normal with a standard deviation of 0.02. The README adapts
    ``q_proj+v_proj`` in its example; that all attention projections are meant is assumed. Deviation: all rows of a step
    count together in the balance loss, where the code takes those of a micro-batch. Backbones need feed-forward blocks
    that are known by their class: those of Llama and its like, Phi and T5.
    """

    name: ClassVar[str] = "mixlora"
    source: ClassVar[str] = (
        "Li et al. 2024, arXiv:2404.15159; TUDB-Labs/MixLoRA@2421333:mixlora/model.py, mixlora/config.py, "
        "@4aa266f:mlora/mix_lora.py, @0ca4aae:README.md"
    )
    size_field: ClassVar[str] = "rank"

    rank: int = 8
    """Of each update."""
    experts: int = 8
    top_k: int = 2
    """Experts of a token."""
    alpha: float = 16.0
    balance: float = 0.01
    """Weight of the load-balance loss; 0 omits it."""
    dropout: float = 0.05
    target: str = "attention"
    """What has a plain LoRA: ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        check(self, "experts", holds=self.experts >= 1, allowed="a whole number of at least 1")
        check(self, "top_k", holds=1 <= self.top_k <= self.experts, allowed=f"from 1 to experts={self.experts}")
        check(self, "balance", holds=0 <= self.balance < float("inf"), allowed="a number of at least 0")
        own = self.target not in ("all", "ffn")
        check(self, "target", holds=own, allowed="attention or its projections: feed-forward blocks have the experts")

    @property
    def has_auxiliary_loss(self) -> bool:
        return self.balance > 0

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        scale = self.alpha / self.rank
        names = nn.select_linears(setup.target_modules, self.target)
        shape = nn.ExpertShape(
            experts=self.experts, rank=self.rank, top_k=self.top_k, scale=scale, dropout=self.dropout
        )
        blocks = nn.adapt_blocks(model, shape, draw=lambda name: nn.seeded_generator(setup.seed, name))
        if not blocks:
            raise RequestError(
                "mixlora: this backbone has no feed-forward blocks that are known, whose experts it could mix. "
                "Take a Llama-, Mistral-, Qwen-, Gemma-, Phi- or T5-like backbone, or another mixture, such as mola."
            )

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw = nn.seeded_generator(setup.seed, name)
            parameters = {
                "down": nn.kaiming_uniform((self.rank, base.in_features), base.in_features, draw),
                "up": torch.zeros(base.out_features, self.rank),
            }
            return nn.LowRankLinear(base, parameters, partial(factors, scale=scale), dropout=self.dropout)

        nn.adapt(model, names, make)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return nn.optimizer_groups(model, learning_rate, no_decay=("router",))

    def auxiliary_loss(self, sums: Mapping[str, RowSums], tasks: Tensor, model: torch.nn.Module) -> Tensor:
        import torch

        values, tokens = (torch.cat([getattr(own, name) for own in sums.values()]) for name in ("values", "tokens"))
        return self.balance * self.top_k * nn.load_balance(values, tokens)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [MixLora]
