"""MoLA: LoRA experts of which higher layers have more, two of them for every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench_methods.molora import factors
from mtlbench_methods.settings import check, check_low_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mtlbench import RowSums


@dataclass(frozen=True, kw_only=True)
class MoLa(Method):
    """``y = W x + b + alpha/rank sum_e p_e B_e A_e dropout(x)`` over the ``top_k`` largest of ``softmax(G x)``.

    The shares of the kept experts sum to one again. The layers of a stack are divided into as many equal groups as
    ``experts`` has numbers, from the input up: the default is the paper's inverted triangle, 2 experts in the first
    quarter of the layers and 8 in the last. An encoder and a decoder are divided each. A layer with fewer than
    ``top_k`` experts uses all.

    ``balance`` weighs ``E sum_e f_e P_e``, summed over the layers: ``f_e`` is the expert's part of all choices and
    ``P_e`` its mean probability, over all tokens of the step in all adapted linears of the layer together.

    Defaults follow the official script: rank 8, alpha 16, dropout 0.05, all projections; ``A`` and the router
    Kaiming-uniform, ``B`` zero. Its code weighs the balance loss by 0.001, behind a switch ``obalance`` that is off
    unless asked for; here the loss is on, and ``balance=0`` omits it. Deviations: padding does not count in the loss,
    and the rows of the whole step count together, where the code takes those of a micro-batch.
    """

    name: ClassVar[str] = "mola"
    source: ClassVar[str] = (
        "Gao et al. 2024, arXiv:2402.08562; GCYZSL/MoLA@4c7324d:src/mola_lora_hacked.py, "
        "src/mola_modeling_llama_hacked.py, mola_training.py"
    )
    size_field: ClassVar[str] = "rank"

    rank: int = 8
    """Of each expert."""
    experts: str = "2+4+6+8"
    """Experts of a linear in each group of layers, from the input up, joined by ``+``."""
    top_k: int = 2
    """Experts that a token keeps."""
    alpha: float = 16.0
    balance: float = 0.001
    """Weight of the load-balance loss; 0 omits it."""
    dropout: float = 0.05
    target: str = "all"
    """``all``, ``attention``, ``ffn``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        numbers = str(self.experts).split("+")
        whole = all(number.isdigit() and int(number) >= 1 for number in numbers)
        check(self, "experts", holds=whole, allowed="whole numbers of at least 1 joined by '+', such as 2+4+6+8")
        check(self, "top_k", holds=self.top_k >= 1, allowed="a whole number of at least 1")
        check(self, "balance", holds=0 <= self.balance < float("inf"), allowed="a number of at least 0")

    @property
    def has_auxiliary_loss(self) -> bool:
        return self.balance > 0

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        names = nn.select_linears(setup.target_modules, self.target)
        experts = experts_of(setup.target_modules, str(self.experts))

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw, count = nn.seeded_generator(setup.seed, name), experts[name]
            wide, top_k = count * self.rank, min(self.top_k, count)
            parameters = {
                "down": nn.kaiming_uniform((wide, base.in_features), base.in_features, draw),
                "up": torch.zeros(base.out_features, wide),
                "router": nn.kaiming_uniform((count, base.in_features), base.in_features, draw),
            }
            of = partial(factors, rank=self.rank, top_k=top_k, scale=self.alpha / self.rank)
            return nn.LowRankLinear(base, parameters, of, dropout=self.dropout, reads_input=True)

        nn.adapt(model, names, make)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return nn.optimizer_groups(model, learning_rate, no_decay=("router",))

    def auxiliary_loss(self, sums: Mapping[str, RowSums], tasks: Tensor, model: torch.nn.Module) -> Tensor:
        import torch

        layers: dict[tuple[str, int], list[RowSums]] = {}
        for name, own in sums.items():
            layers.setdefault(nn.layer_of(name), []).append(own)
        losses = [
            nn.load_balance(torch.cat([own.values for own in group]), torch.cat([own.tokens for own in group]))
            for group in layers.values()
        ]
        return self.balance * torch.stack(losses).sum()


def experts_of(names: tuple[str, ...], experts: str) -> dict[str, int]:
    """How many experts each of the linears ``names`` has; ``experts`` is as in the setting."""
    numbers = [int(number) for number in experts.split("+")]
    places = {name: nn.layer_of(name) for name in names}
    layers: dict[str, int] = {}
    for stack, number in places.values():
        layers[stack] = max(layers.get(stack, 0), number + 1)
    return {name: numbers[number * len(numbers) // layers[stack]] for name, (stack, number) in places.items()}


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [MoLa]
