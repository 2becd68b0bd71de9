"""R-LoRA: several up-projections, drawn at random and each with dropout of its own, over one down-projection."""

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
class RLora(Method):
    """``y = (W - s mean_i(B_i A) at the start) x + b + s sum_i p_i B_i dropout_i(A x)`` with ``p = softmax(G x)``.

    Multi-head random initialisation: ``A`` and the heads ``B_i`` are normal, with standard deviations of
    ``c / sqrt(max(rank, in))`` and ``c / sqrt(max(rank, out))``, ``c = rank^(1/4) / sqrt(gamma)``, and what they mean
    together is subtracted from the frozen weight. Multi-head dropout: each head drops elements of ``A x`` by itself.
    ``s = alpha / sqrt(rank)``.

    Follows the repository; of the paper only the abstract was at hand. Defaults are those of its script: rank 4, alpha
    32, 5 heads, dropout 0.1, gamma 64, the projections of the feed-forward block; the router is Kaiming-uniform. The
    function at the start is the backbone's but for how far the router is from uniform. Deviation: what is subtracted is
    computed beside the frozen weight instead of inside it, which shares the backbone and rounds less; it costs ``rank``
    more columns and stores the first ``A`` and the mean of the first heads in memory, not in adapters.
    """

    name: ClassVar[str] = "rlora"
    source: ClassVar[str] = (
        "Liu et al. 2025, arXiv:2502.15455; jinda-liu/R-LoRA@07b8b0c:peft/tuners/lora.py, reinit.py, fine-tuning.sh"
    )
    identity_at_start: ClassVar[bool] = False
    size_field: ClassVar[str] = "rank"

    rank: int = 4
    heads: int = 5
    """Up-projections."""
    alpha: float = 32.0
    gamma: float = 64.0
    """The larger, the smaller ``A`` and ``B`` are drawn."""
    dropout: float = 0.1
    target: str = "ffn"
    """``ffn``, ``attention``, ``all``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        check(self, "heads", holds=self.heads >= 1, allowed="a whole number of at least 1")
        check(self, "gamma", holds=0 < self.gamma < float("inf"), allowed="a number above 0")

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        rank, part = self.rank, Part()
        nn.attach_state(model, part)
        of = partial(factors, part=part, dropout=self.dropout, scale=self.alpha / rank**0.5)
        size = rank**0.25 / self.gamma**0.5

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw, device = nn.seeded_generator(setup.seed, name), base.weight.device
            wide, out = base.in_features, base.out_features
            down = size / max(rank, wide) ** 0.5 * torch.randn(rank, wide, generator=draw)
            up = size / max(rank, out) ** 0.5 * torch.randn(out, self.heads, rank, generator=draw)
            parameters = {
                "down": down,
                "up": up,
                "router": nn.kaiming_uniform((self.heads, wide), wide, draw),
                "first_down": torch.nn.Parameter(down.clone().to(device), requires_grad=False),
                "first_up": torch.nn.Parameter(up.mean(1).to(device), requires_grad=False),
            }
            return nn.LowRankLinear(base, parameters, of, reads_input=True)

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return nn.optimizer_groups(model, learning_rate, no_decay=("router",))

    def switch(self, model: torch.nn.Module, *, on: bool) -> None:
        nn.get_state(model, Part).on = on


@dataclass
class Part:
    """Whether the method takes part; kept with the model."""

    on: bool = True


def factors(
    parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, part: Part, dropout: float, scale: float
) -> nn.Factors:
    """``A`` once for every head, gated by the head's share and its dropout, and the first ``A`` for what is subtracted.

    Args:
        parameters: ``down [rank, in]``, ``up [out, heads, rank]``, ``router [heads, in]``, and frozen ``first_down
            [rank, in]`` and ``first_up [out, rank]``.
    """
    import torch

    down, up, router = parameters["down"], parameters["up"], parameters["router"]
    gate = token_shares(rows.x, router).repeat_interleave(len(down), dim=-1)
    if dropout and rows.training and down.requires_grad:
        mask = nn.dropout_mask(gate.detach(), dropout=dropout, seed=nn.dropout_seed())
        gate = gate * (mask / (1 - dropout))
    gate = torch.cat([gate, -gate.new_ones(*gate.shape[:-1], len(down))], dim=-1)
    downs = torch.cat([*[down] * len(router), parameters["first_down"]])
    ups = torch.cat([up.flatten(1), parameters["first_up"]], dim=1)
    return nn.Factors(down=downs, up=ups, gate=gate if part.on else gate * 0, scale=scale)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [RLora]
