"""LoRA: one low-rank update shared by all tasks."""

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
class Lora(Method):
    """``y = W x + b + s B A dropout(x)`` with ``s = alpha / rank``.

    The defaults are the LoRA baseline of the PEML paper: rank 16, alpha 32, dropout 0.1 on every projection. ``A`` is
    drawn as in peft (Kaiming-uniform, where the LoRA paper says Gaussian), ``B`` starts at zero.

    ``b_rate_ratio`` above 1 is LoRA+ (Hayou et al. 2024, arXiv:2402.12354;
    nikhil-ghosh-berkeley/loraplus@58fec99:lora_plus.py): ``B`` learns that many times faster than ``A``. The paper
    recommends 16 (2^4) together with a lower rate of ``A`` than LoRA's. The official code's rate of adapted embeddings
    has no counterpart, as embeddings are not adapted here.
    """

    name: ClassVar[str] = "lora"
    source: ClassVar[str] = "Hu et al. 2022, arXiv:2106.09685, eq. 3; huggingface/peft 0.21.2: peft.tuners.lora"
    size_field: ClassVar[str] = "rank"

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1
    rslora: bool = False
    """Divide ``alpha`` by the root of the rank (Kalajdzievski 2023)."""
    target: str = "all"
    """``all``, ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""
    b_rate_ratio: float = 1.0
    """Learning rate of ``B`` as a multiple of that of ``A``; 1 is LoRA, 16 what LoRA+ recommends."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        check(self, "b_rate_ratio", holds=0 < self.b_rate_ratio < float("inf"), allowed="a number above 0")

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        scale = self.alpha / (self.rank**0.5 if self.rslora else self.rank)

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            parameters = {
                "down": nn.kaiming_uniform(
                    (self.rank, base.in_features), base.in_features, nn.seeded_generator(setup.seed, name)
                ),
                "up": torch.zeros(base.out_features, self.rank),
            }
            return nn.LowRankLinear(base, parameters, partial(factors, scale=scale), dropout=self.dropout)

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """One group, or with ``b_rate_ratio`` the up-projections in one of their own."""
        if self.b_rate_ratio == 1:
            return super().param_groups(model, learning_rate)
        named = [(name.rpartition(".")[2], p) for name, p in model.named_parameters() if p.requires_grad]
        fast = [p for name, p in named if name.partition("_")[0] == "up"]
        others = [p for name, p in named if name.partition("_")[0] != "up"]
        return [{"params": others, "lr": learning_rate}, {"params": fast, "lr": self.b_rate_ratio * learning_rate}]

    def finish(self, model: torch.nn.Module) -> None:
        """Merge: nothing is left to compute at inference."""
        nn.merge_low_rank(model)

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:

        nn.export_lora(model, folder, task=task, dropout=self.dropout)


@dataclass(frozen=True, kw_only=True)
class RsLora(Lora):
    """LoRA scaled by the root of the rank, ``s = alpha / sqrt(rank)``, so that a higher rank keeps learning."""

    name: ClassVar[str] = "rslora"
    source: ClassVar[str] = "Kalajdzievski 2023, arXiv:2312.03732; huggingface/peft 0.21.2: LoraConfig(use_rslora)"

    rslora: bool = True


def factors(parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, scale: float) -> nn.Factors:
    """``down [rank, in]`` and ``up [out, rank]`` as they are."""
    return nn.Factors(down=parameters["down"], up=parameters["up"], scale=scale)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Lora, RsLora]
