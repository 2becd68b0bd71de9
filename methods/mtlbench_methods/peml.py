"""PEML: a prefix whose encoder searches its own architecture, trained jointly with LoRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Composite, Method, Setup, Value, hookimpl
from mtlbench.errors import RequestError
from mtlbench_methods.lora import Lora
from mtlbench_methods.peml_tables import TABLES
from mtlbench_methods.prefixnas import CANDIDATES, WIDEST, PrefixNas
from mtlbench_methods.settings import backbone_width, check

if TYPE_CHECKING:
    import torch

BASELINES = "base,lora,adalora,preembedd,preembedd+lora,preembedd+adalora,peml,prefixnas+adalora"
_GLUE = {"tasks": "glue", "seeds": "0,1,2", "reports": "markdown,charts"}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "peml/baselines": {"tasks": "glue", "seeds": "0,1,2,3,4", "epochs": 1.0, "methods": BASELINES},
    "peml/figure-3": {
        **_GLUE,
        "methods": ",".join(
            [
                *(f"peml[layers={n}]" for n in range(1, 9)),
                "peml[repeat=true]",
                "peml[skip=true]",
                "peml[reduction=true]",
            ]
        ),
    },
    "peml/figure-4": {
        "measure": {
            "model": "random:llama-7b",
            "lengths": "1024",
            "batch_size": 4,
            "dtype": "bfloat16",
            "parts": "training",
            "methods": ",".join(
                word
                for rank in (32, 64, 96, 128, 160)
                for word in (
                    f"lora[rank={rank}]",
                    f"multilora[modules={rank // 32},rank=32]",
                    f"peml[rank={rank}]",
                )
            ),
        }
    },
    "peml/operations": {
        **_GLUE,
        "methods": ",".join(["peml", *(f"peml[without={word}]" for word in CANDIDATES)]),
    },
    "peml/objective": {
        **_GLUE,
        "methods": "base,lora,mtl_lora,prefixnas+lora,peml",
        "parts": [{"task_weighting": "rows"}, {"task_weighting": "tasks"}],
        "notes": ["PEML trains on the mean over tasks, the others on the mean over rows: here all on both."],
    },
    "peml/control": {
        **_GLUE,
        "seeds": "0,1,2,3,4",
        "methods": "peml,peml[architecture=random],peml[architecture=gelu-drop0.1],preembedd+lora",
        "notes": ["Whether the search finds more than an operation drawn for each layer, or one taken for all."],
    },
    "peml/update": {**_GLUE, "methods": "peml,peml[arch_update=joint]"},
    "peml/per-task": {**_GLUE, "methods": "peml,peml[per_task=true]"},
    "peml/orders": {**_GLUE, "methods": "peml,peml[order=prefix_then_lora],peml[order=lora_then_prefix]"},
}
"""Ablations on GLUE: of the paper's Figure 3, each candidate left out, and our own decisions."""

ORDERS: Mapping[str, tuple[int, ...] | None] = {
    "parallel": None,
    "prefix_then_lora": (0, 1),
    "lora_then_prefix": (1, 0),
}


@dataclass(frozen=True, kw_only=True)
class Peml(Composite):
    """PrefixNAS and LoRA on all projections, trained together under one loss: ``prefixnas+lora`` with flat settings.

    It differs from that composition in two ways: weight decay is also on LoRA's matrices, and a search of settings
    tries PrefixNAS's fields, learning rate and prefix length.

    Afterwards LoRA is merged and the prefix is a constant. What the settings mean is said where they come from:
    :class:`~mtlbench_methods.prefixnas.PrefixNas` and :class:`~mtlbench_methods.lora.Lora`.
    """

    name: ClassVar[str] = "peml"
    source: ClassVar[str] = "PEML, arXiv:2605.14055, eq. 4 to 13 and Algorithm 1; no public code is known"
    identity_at_start: ClassVar[bool] = False
    composable: ClassVar[bool] = False
    size_field: ClassVar[str] = "width"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {**PRESETS, **TABLES}

    prefix_length: int = 20
    layers: int = 6
    width: int | None = None
    where: str = "dec"
    bias: str = "relative"
    without: str = ""
    repeat: bool = False
    skip: bool = False
    reduction: bool = False
    per_task: bool = False
    arch_update: str = "alternate"
    arch_learning_rate: float | None = None
    architecture: str = "search"
    arch_share: float = 0.125
    entropy: float = 0.05
    search_share: float = 0.3
    warmup_share: float = 0.2
    rank: int = 16
    alpha: float = 32.0
    """LoRA's numerator: its term is scaled by ``alpha / rank``."""
    dropout: float = 0.1
    """Of LoRA; the encoder searches its own."""
    target: str = "all"
    """Projections with LoRA."""
    weight_decay: float = 0.01
    """On matrices of both; embedding, biases, norms and architecture logits have none."""
    order: str = "parallel"
    """``parallel``, or half of the budget each with the other part frozen: ``prefix_then_lora``, ``lora_then_prefix``
    (Table 11 of the paper)."""

    def __post_init__(self) -> None:
        check(self, "order", holds=self.order in ORDERS, allowed=f"one of {', '.join(ORDERS)}")
        try:
            self.parts()
        except RequestError as error:
            raise RequestError(f"{self.name}{str(error)[str(error).index('[') :]}") from error

    @property
    def task_routed(self) -> bool:
        return self.per_task

    def sized(self, size: int, setup: Setup) -> Mapping[str, Value]:
        """Width of the encoder and rank of LoRA together, in the ratio that they have by default on this backbone."""
        width = self.width or min(WIDEST, backbone_width(setup))
        return {"width": size, "rank": max(1, round(size * self.rank / width))}

    def parts(self) -> tuple[Method, ...]:
        prefix = {f.name: getattr(self, f.name) for f in dataclasses.fields(PrefixNas) if hasattr(self, f.name)}
        lora = Lora(rank=self.rank, alpha=self.alpha, dropout=self.dropout, target=self.target)
        return PrefixNas(**prefix), lora

    def turns(self) -> tuple[int, ...] | None:
        return ORDERS[self.order]

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return [{"weight_decay": self.weight_decay, **group} for group in super().param_groups(model, learning_rate)]

    def search_space(self, trial: Any) -> Mapping[str, Value]:
        """The paper's: learning rate and prefix length."""
        return self.parts()[0].search_space(trial)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Peml]
