"""PrefixNAS: a prefix whose encoder searches its own architecture while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Trainer, Value, hookimpl, nn
from mtlbench_methods.prefix_method import PrefixMethod, encoder_of
from mtlbench_methods.settings import check

if TYPE_CHECKING:
    import torch
    from torch import Tensor


WIDEST = 1024
ACTIVATIONS = ("relu", "tanh", "leaky_relu", "gelu")
DROPOUTS = ("0.1", "0.3", "0.5")
CANDIDATES = (*ACTIVATIONS, *DROPOUTS)
"""What an operation is made of, as ``without`` names it."""
REACH = 6.0
"""How far a search can move a logit; two operations 2 apart weigh 0.88 and 0.12."""


@dataclass(frozen=True, kw_only=True)
class PrefixNas(PrefixMethod):
    """One searched prefix for all tasks, under the mean over tasks of each task's mean loss (PEML, eq. 4).

    The first ``search_share`` of the steps searches the encoder: a warm-up without architecture logits, then updates of
    the logits, and 12, 6, 3, 1 candidate operations per layer. The rest trains what was found. Afterwards the prefix is
    a constant. Where the paper is silent or contradicts itself, the defaults are our decisions.
    """

    name: ClassVar[str] = "prefixnas"
    resumable: ClassVar[bool] = True
    weighting: ClassVar[str] = "tasks"
    size_field: ClassVar[str] = "width"
    source: ClassVar[str] = "PEML, arXiv:2605.14055, eq. 4 to 13 and Algorithm 1; no public code is known"

    layers: int = 6
    """Searched layers of the encoder."""
    width: int | None = None
    """Width of the encoder; ``None`` is the backbone's hidden size, at most 1024. The paper's 1024 is the hidden size
    of its T5-large; on a backbone a few hundred wide such an encoder would be many times the backbone."""
    without: str = ""
    """Candidate operations to leave out: activations (``relu``, ``tanh``, ``leaky_relu``, ``gelu``) and dropout rates
    (``0.1``, ``0.3``, ``0.5``) joined by ``+``."""
    repeat: bool = False
    """Every layer is the first one again: its weights and its logits."""
    skip: bool = False
    """Add a layer's input to its output."""
    reduction: bool = False
    """Halve the width in the middle of the encoder."""
    per_task: bool = False
    """An embedding and logits for each task; a row then needs its task id at inference."""
    weight_decay: float = 0.01
    """On matrices; embedding, biases, norms and architecture logits have none."""
    arch_update: str = "alternate"
    """``alternate``: logits step on held-out rows without dropout before each weight step, since dropout rates cannot
    be chosen on the loss they regularise. ``joint``: one loss and optimizer for everything (Algorithm 1)."""
    arch_learning_rate: float | None = None
    """Of the logits when alternating. ``None`` lets the steps of the search move a logit by up to :data:`REACH`: a rate
    that suits thousands of steps leaves the mixtures of a few hundred as they were drawn."""
    architecture: str = "search"
    """``search``; ``random``: one operation for each layer, drawn by the seed, and no search; or one such as
    ``gelu-drop0.1`` for all layers, or one for each joined by ``/``. Controls of what the search is worth."""
    arch_share: float = 0.125
    """Rows of a held-out batch when alternating, as a share of a training batch."""
    entropy: float = 0.05
    """Weight of the mixtures' entropy at the end of its ramp (lambda of eq. 4)."""
    search_share: float = 0.3
    """Share of the steps that search."""
    warmup_share: float = 0.2
    """Share of the search that leaves the logits alone."""

    def __post_init__(self) -> None:
        self.check_prefix()
        positive = "a whole number of at least 1"
        check(self, "layers", holds=self.layers >= 1, allowed=positive)
        check(self, "width", holds=self.width is None or self.width >= 1, allowed=f"none or {positive}")
        check(self, "without", holds=_known(self.without), allowed=f"empty, or {', '.join(CANDIDATES)} joined by '+'")
        check(self, "without", holds=bool(_operations_left(self.without)), allowed="so few that one operation is left")
        check(self, "reduction", holds=not (self.reduction and self.repeat), allowed="false where repeat=true")
        check(self, "weight_decay", holds=0 <= self.weight_decay < 1, allowed="at least 0 and below 1")
        check(self, "arch_update", holds=self.arch_update in ("alternate", "joint"), allowed="alternate or joint")
        rate = self.arch_learning_rate
        check(self, "arch_learning_rate", holds=rate is None or 0 < rate < 1, allowed="none, or above 0 and below 1")
        left = _operations_left(self.without)
        fixed = self.architecture.split("/")
        known = self.architecture in ("search", "random") or (
            set(fixed) <= set(left) and len(fixed) in (1, self.layers)
        )
        check(
            self, "architecture", holds=known, allowed=f"search, random, or one or {self.layers} of {', '.join(left)}"
        )
        check(self, "arch_share", holds=0 < self.arch_share <= 1, allowed="above 0 and at most 1")
        check(self, "entropy", holds=0 <= self.entropy < float("inf"), allowed="a number of at least 0")
        check(self, "search_share", holds=0 < self.search_share <= 1, allowed="above 0 and at most 1")
        check(self, "warmup_share", holds=0 <= self.warmup_share < 1, allowed="at least 0 and below 1")

    @property
    def searches(self) -> bool:
        return self.architecture == "search" and self.arch_update == "alternate"

    @property
    def task_routed(self) -> bool:
        return self.per_task

    def encoder(self, slots: nn.PrefixSlots, hidden: int, setup: Setup, draw: torch.Generator) -> torch.nn.Module:

        left = _operations_left(self.without)

        def encoder() -> nn.PrefixNAS:
            made = nn.PrefixNAS(
                shape=slots.shape,
                length=self.prefix_length,
                width=self.width or min(WIDEST, hidden),
                layers=self.layers,
                draw=draw,
                operations=[operation for operation in nn.PREFIX_OPERATIONS if operation.name in left],
                repeat=self.repeat,
                skip=self.skip,
                reduction=self.reduction,
            )
            if self.architecture != "search":
                made.fix(self._fixed(len(made.architecture()), left, draw))
            return made

        if not self.per_task:
            return encoder()
        return nn.TaskPrefixes([encoder() for _ in setup.tasks], [task.name for task in setup.tasks], setup.routing)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        encoders = encoder_of(model).encoders()
        embeddings = {id(encoder.embedding) for encoder in encoders}
        alphas = {id(encoder.alpha) for encoder in encoders}
        trained = [p for p in model.parameters() if p.requires_grad]
        if self.arch_update == "alternate":
            trained = [p for p in trained if id(p) not in alphas]
        matrices = [p for p in trained if p.dim() > 1 and id(p) not in embeddings | alphas]
        others = [p for p in trained if p.dim() == 1 or id(p) in embeddings | alphas]
        return [
            {"params": matrices, "lr": learning_rate, "weight_decay": self.weight_decay},
            {"params": others, "lr": learning_rate, "weight_decay": 0.0},
        ]

    def penalty(self, model: torch.nn.Module) -> Tensor | None:
        """The entropy of the mixtures, while their logits train."""
        encoders = encoder_of(model).encoders()
        terms = [term for term in (encoder.penalty() for encoder in encoders) if term is not None]
        total: Tensor | None = sum(terms[1:], terms[0]) / len(encoders) if terms else None
        return total

    def _fixed(self, layers: int, candidates: Sequence[str], draw: torch.Generator) -> list[str]:
        """One operation for each searched layer, where nothing is searched."""
        if self.architecture == "random":
            import torch

            return [candidates[int(at)] for at in torch.randint(len(candidates), (layers,), generator=draw)]
        names = self.architecture.split("/")
        return names * layers if len(names) == 1 else names[:layers]

    def fit(self, model: torch.nn.Module, trainer: Trainer) -> None:
        if self.architecture != "search":
            trainer.run()
            return
        plan = nn.SearchSchedule.of(trainer.total_steps, share=self.search_share, warmup_share=self.warmup_share)
        search = nn.ArchitectureSearch(
            encoder_of(model).encoders(),
            plan,
            search_loss=partial(trainer.search_loss, share=self.arch_share)
            if self.arch_update == "alternate"
            else None,
            learning_rate=self.arch_learning_rate or plan.rate(REACH),
            entropy_weight=self.entropy,
        )
        trainer.keep(search, modules=search.encoders)
        # The last cut comes before the step after the search; a state kept before it would be another network.
        trainer.run(before_step=search.before_step, patience_from=plan.steps + 1)
        for encoder in encoder_of(model).encoders():
            encoder.derive(step=trainer.total_steps)

    def finish(self, model: torch.nn.Module) -> None:
        for encoder in encoder_of(model).encoders():
            encoder.derive()
        super().finish(model)

    def search_space(self, trial: Any) -> Mapping[str, Value]:
        """The paper's: learning rate 1e-3 to 2e-2 in steps of 5e-5, prefix length 5 to 50."""
        rate = trial.suggest_float("learning_rate", 1e-3, 2e-2, log=True)
        return {
            "learning_rate": round(rate / 5e-5) * 5e-5,
            "prefix_length": trial.suggest_int("prefix_length", 5, 50),
        }


def _known(without: str) -> bool:
    return not without or set(without.split("+")) <= set(CANDIDATES)


def _operations_left(without: str) -> tuple[str, ...]:
    """Names of the candidate operations that are not left out."""
    out = set(without.split("+"))
    return tuple(f"{name}-drop{rate}" for name in ACTIVATIONS for rate in DROPOUTS if not {name, rate} & out)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [PrefixNas]
