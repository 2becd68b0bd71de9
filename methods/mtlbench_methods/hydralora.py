"""HydraLoRA: one shared down-projection and several up-projections that a router mixes for every token."""

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


@dataclass(frozen=True, kw_only=True)
class HydraLora(Method):
    """``y = W x + b + alpha/rank sum_i p_i B_i A dropout(x)`` with ``p = softmax(G x)`` for every token.

    One ``A`` and ``heads`` matrices ``B_i`` in every adapted linear; ``p`` is the paper's ``omega``. Defaults follow
    the official script: rank 4, alpha 32, 4 heads, dropout 0.05, the projections of the feed-forward block
    (``target=ffn``). ``A`` and the router are Kaiming-uniform, ``B`` is zero; the router reads the input without
    dropout. The number of heads is fixed here: the paper chooses it by clustering the training rows, the code takes it
    as an argument. The code inherits LoRAMoE's constraint, which its script does not set; it is left out.
    """

    name: ClassVar[str] = "hydralora"
    source: ClassVar[str] = (
        "Tian et al. 2024, arXiv:2404.19245; Clin0212/HydraLoRA@5c08a78:HydraLoRA/peft/tuners/lora.py"
    )
    size_field: ClassVar[str] = "rank"

    rank: int = 4
    heads: int = 4
    """Up-projections."""
    alpha: float = 32.0
    dropout: float = 0.05
    target: str = "ffn"
    """``ffn``, ``attention``, ``all``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        check(self, "heads", holds=self.heads >= 1, allowed="a whole number of at least 1")

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        of = partial(factors, scale=self.alpha / self.rank)

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw = nn.seeded_generator(setup.seed, name)
            parameters = {
                "down": nn.kaiming_uniform((self.rank, base.in_features), base.in_features, draw),
                "up": torch.zeros(base.out_features, self.heads, self.rank),
                "router": nn.kaiming_uniform((self.heads, base.in_features), base.in_features, draw),
            }
            return nn.LowRankLinear(base, parameters, of, dropout=self.dropout, reads_input=True)

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return nn.optimizer_groups(model, learning_rate, no_decay=("router",))


def factors(parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, scale: float) -> nn.Factors:
    """``A`` once for every head, gated by the head's share.

    Args:
        parameters: ``down [rank, in]``, ``up [out, heads, rank]``, ``router [heads, in]``.
    """
    down, up, router = parameters["down"], parameters["up"], parameters["router"]
    gate = token_shares(rows.x, router).repeat_interleave(len(down), dim=-1)
    return nn.Factors(down=down.repeat(len(router), 1), up=up.flatten(1), gate=gate, scale=scale)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [HydraLora]
