"""DoRA: the direction of each row of a weight is changed by LoRA, its length is learned apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench_methods.settings import check_low_rank

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Dora(Method):
    """``y = m / |V| * (V x) + b`` with ``V = W + alpha/rank B A``, and ``|V|`` by row, a constant in the backward.

    ``m`` starts at the norms of the rows of ``W``, ``A`` and ``B`` as in LoRA. The defaults are the rank and alpha of
    the official commonsense run, without its dropout (0.05): with dropout each layer multiplies by ``W`` twice.
    """

    name: ClassVar[str] = "dora"
    source: ClassVar[str] = (
        "Liu et al. 2024, arXiv:2402.09353, eq. 5; NVlabs/DoRA@7e2f10a:commonsense_reasoning; "
        "huggingface/peft 0.21.2: peft.tuners.lora.dora"
    )
    size_field: ClassVar[str] = "rank"
    supports_quantized: ClassVar[bool] = False
    """The norms of the rows of ``W + s B A`` are computed from ``W`` in every step."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target: str = "all"
    """``all``, ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_low_rank(self)

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:

        def make(name: str, base: torch.nn.Linear) -> nn.DoraLinear:
            down = nn.kaiming_uniform(
                (self.rank, base.in_features), base.in_features, nn.seeded_generator(setup.seed, name)
            )
            return nn.DoraLinear(base, down, scale=self.alpha / self.rank, dropout=self.dropout)

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return nn.optimizer_groups(model, learning_rate, no_decay=("magnitude",))

    def finish(self, model: torch.nn.Module) -> None:
        """Merge: nothing is left to compute at inference."""
        nn.merge_dora(model)

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:

        nn.export_dora(model, folder, dropout=self.dropout)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Dora]
