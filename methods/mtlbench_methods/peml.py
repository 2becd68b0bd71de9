"""PEML: a prefix whose encoder searches its own architecture, trained jointly with LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Trainer, hookimpl
from mtlbench_methods.lora import Lora
from mtlbench_methods.settings import check, check_low_rank

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mtlbench.engine.prefix_nas import PrefixNAS

WIDEST = 1024


@dataclass(frozen=True, kw_only=True)
class Peml(Method):
    """PrefixNAS and LoRA on all projections under one loss, the mean over tasks of each task's mean (eq. 4).

    One prefix serves all tasks; it is put before the keys and values of every decoder self-attention layer. The first
    ``search_share`` of the steps searches the encoder: a warm-up without architecture logits, then updates of the
    logits, and 12, 6, 3, 1 candidate operations per layer. The rest trains what was found. Afterwards LoRA is merged
    and the prefix is a constant. Where the paper is silent or contradicts itself, the defaults are our decisions.
    """

    name: ClassVar[str] = "peml"
    source: ClassVar[str] = "PEML, arXiv:2605.14055, eq. 4 to 13 and Algorithm 1; no public code is known"
    identity_at_start: ClassVar[bool] = False
    """A prefix takes attention from the first step on, even one of zeros."""

    prefix_length: int = 20
    layers: int = 6
    """Searched layers of the encoder."""
    width: int | None = None
    """Width of the encoder; ``None`` is the backbone's hidden size, at most 1024. The paper's 1024 is the hidden size
    of its T5-large; on a backbone a few hundred wide such an encoder would be many times the backbone."""
    where: str = "dec"
    """Where the prefix goes: ``dec``, the decoder's self-attention; that fits the paper's 2 to 8 % of parameters."""
    bias: str = "relative"
    """Position bias of the prefix in T5: ``relative``, as memory slots before the first token, or ``zero``."""
    rank: int = 16
    alpha: float = 32.0
    """LoRA's numerator: its term is scaled by ``alpha / rank``."""
    dropout: float = 0.1
    """Of LoRA; the encoder searches its own."""
    target: str = "all"
    """Projections with LoRA: ``all``, ``attention``, or last parts of names joined by ``+``."""
    weight_decay: float = 0.01
    """On matrices; embedding, biases, norms and architecture logits have none."""
    arch_update: str = "alternate"
    """``alternate``: logits step on held-out rows without dropout before each weight step, since dropout rates cannot
    be chosen on the loss they regularise. ``joint``: one loss and optimizer for everything (Algorithm 1)."""
    arch_learning_rate: float = 3e-3
    """Of the logits when alternating."""
    entropy: float = 0.05
    """Weight of the mixtures' entropy at the end of its ramp (lambda of eq. 4)."""
    search_share: float = 0.3
    """Share of the steps that search."""
    warmup_share: float = 0.2
    """Share of the search that leaves the logits alone."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        positive = "a whole number of at least 1"
        check(self, "prefix_length", holds=self.prefix_length >= 1, allowed=positive)
        check(self, "layers", holds=self.layers >= 1, allowed=positive)
        check(self, "width", holds=self.width is None or self.width >= 1, allowed=f"none or {positive}")
        check(self, "where", holds=self.where == "dec", allowed="dec")
        check(self, "bias", holds=self.bias in ("relative", "zero"), allowed="relative or zero")
        check(self, "weight_decay", holds=0 <= self.weight_decay < 1, allowed="at least 0 and below 1")
        check(self, "arch_update", holds=self.arch_update in ("alternate", "joint"), allowed="alternate or joint")
        check(self, "arch_learning_rate", holds=0 < self.arch_learning_rate < 1, allowed="above 0 and below 1")
        check(self, "entropy", holds=0 <= self.entropy < float("inf"), allowed="a number of at least 0")
        check(self, "search_share", holds=0 < self.search_share <= 1, allowed="above 0 and at most 1")
        check(self, "warmup_share", holds=0 <= self.warmup_share < 1, allowed="at least 0 and below 1")

    def refuse(self, setup: Setup) -> str | None:
        if self.prefix_length >= setup.max_length:
            return (
                f"prefix_length={self.prefix_length} is not below max_length={setup.max_length}: the prefix would "
                "outweigh every row. Take a shorter prefix or a larger max_length."
            )
        return None

    def attach(self, model: nn.Module, setup: Setup) -> None:
        from mtlbench.engine.inject import attach_prefix
        from mtlbench.engine.lowrank import generator
        from mtlbench.engine.prefix_nas import PrefixNAS

        host: Any = model
        slots = attach_prefix(model, where=self.where, bias=self.bias)
        encoder = PrefixNAS(
            shape=slots.shape,
            length=self.prefix_length,
            width=self.width or min(WIDEST, host.config.hidden_size),
            layers=self.layers,
            draw=generator(setup.seed, "prefix"),
        )
        slots.feed(encoder.to(next(model.parameters()).device))
        host.mtlbench_tasks = len(setup.tasks)
        self._lora().attach(model, setup)

    def param_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        encoder = _encoder(model)
        tables = {id(encoder.embedding), id(encoder.alpha)}
        trained = [p for p in model.parameters() if p.requires_grad]
        if self.arch_update == "alternate":
            trained = [p for p in trained if p is not encoder.alpha]
        matrices = [p for p in trained if p.dim() > 1 and id(p) not in tables]
        others = [p for p in trained if p.dim() == 1 or id(p) in tables]
        return [
            {"params": matrices, "lr": learning_rate, "weight_decay": self.weight_decay},
            {"params": others, "lr": learning_rate, "weight_decay": 0.0},
        ]

    def loss(self, row_losses: Tensor, tasks: Tensor, model: nn.Module) -> Tensor:
        from mtlbench.engine.loss import task_means

        host: Any = model
        loss = task_means(row_losses, tasks, host.mtlbench_tasks)
        penalty = _encoder(model).penalty()
        return loss if penalty is None else loss + penalty

    def fit(self, model: nn.Module, trainer: Trainer) -> None:
        from mtlbench.engine.prefix_search import ArchitectureSearch, SearchPlan

        plan = SearchPlan.of(trainer.total_steps, share=self.search_share, warmup_share=self.warmup_share)
        search = ArchitectureSearch(
            _encoder(model),
            plan,
            search_loss=trainer.search_loss if self.arch_update == "alternate" else None,
            learning_rate=self.arch_learning_rate,
            entropy_weight=self.entropy,
        )
        # The last cut comes before the step after the search; a state kept before it would be another network.
        trainer.run(before_step=search.before_step, patience_from=plan.steps + 1)
        _encoder(model).derive(step=trainer.total_steps)

    def finish(self, model: nn.Module) -> None:
        """Merge LoRA and replace the encoder by the prefix it makes."""
        from mtlbench.engine.inject import StaticPrefix

        host: Any = model
        encoder = _encoder(model)
        encoder.derive()
        host.mtlbench_prefix.feed(StaticPrefix(encoder.collapse(), encoder.notes()))
        self._lora().finish(model)

    def _lora(self) -> Lora:
        return Lora(rank=self.rank, alpha=self.alpha, dropout=self.dropout, target=self.target)


def _encoder(model: nn.Module) -> PrefixNAS:
    host: Any = model
    encoder: PrefixNAS = host.mtlbench_prefix.source
    return encoder


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Peml]
