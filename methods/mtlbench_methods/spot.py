"""SPoT: prompts of targets start from prompts trained on sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mtlbench import Method, Setup, Trainer, hookimpl, nn
from mtlbench_methods.settings import check
from mtlbench_methods.soft_prompt_method import SoftPromptMethod, SourceTasks, prompt_of

if TYPE_CHECKING:
    import torch


TRANSFERS = ("best", "weighted", "mixture", "task")


@dataclass(frozen=True, kw_only=True)
class Spot(SoftPromptMethod):
    """A prompt for each task. Those of targets start from sources' and are trained on.

    With ``--sources``, those are the sources; where a target looks for similar ones, a first part of its budget trains
    a prompt of its own to compare with. Without, every task is a target of the others: a part of the budget trains all
    prompts as sources, the rest goes on from what each takes from the others.
    """

    name: ClassVar[str] = "spot"
    source: ClassVar[str] = "Vu et al. 2022, arXiv:2110.07904, sections 3 and 4; no code is followed"
    task_routed: ClassVar[bool] = True
    resumable: ClassVar[bool] = True

    transfer: str = "best"
    """What a target starts from: ``best``, the most similar source; ``weighted``, the mean of the ``top`` most similar,
    by similarity; ``mixture``, one prompt trained on all sources; ``task``, the source ``from_task``."""
    similarity: str = "tokens"
    """Of two prompts: ``tokens``, the mean cosine over all pairs of their vectors (the paper's better one); ``mean``,
    the cosine of their mean vectors."""
    top: int = 3
    """Sources in a ``weighted`` mean."""
    from_task: str = ""
    """Full name of a source, with ``transfer=task``."""
    source_share: float = 0.5
    """Part of the budget that trains prompts of sources, where no ``--sources`` say what does."""
    early_share: float = 0.04
    """Part of the targets' budget that trains prompts to compare, with ``--sources``: the paper's 10,000 of 2^18 steps.
    """

    def __post_init__(self) -> None:
        self.check_prompt()
        check(self, "transfer", holds=self.transfer in TRANSFERS, allowed=f"one of {', '.join(TRANSFERS)}")
        check(self, "similarity", holds=self.similarity in ("tokens", "mean"), allowed="tokens or mean")
        check(self, "top", holds=self.top >= 1, allowed="a whole number of at least 1")
        named = bool(self.from_task) == (self.transfer == "task")
        check(self, "from_task", holds=named, allowed="given with transfer=task, and only there")
        check(self, "source_share", holds=0 < self.source_share < 1, allowed="above 0 and below 1")
        check(self, "early_share", holds=0 < self.early_share < 1, allowed="above 0 and below 1")

    def refuse(self, setup: Setup) -> str | None:
        sources = [task.name for task in setup.tasks[: setup.sources or None]]
        if self.transfer == "task" and self.from_task not in sources:
            return f"from_task={self.from_task} is no source. The sources are {', '.join(sources)}."
        if not setup.sources and len(sources) < 2 and self.transfer != "mixture":
            return "one task has no other to start from. Name --sources, or take more tasks."
        if not setup.sources and setup.total_steps < 2:
            return "sources and targets need a step each: raise steps or epochs, or name --sources."
        return None

    def prompts(self, model: torch.nn.Module, setup: Setup) -> nn.PromptSource:

        names = tuple(task.name for task in setup.tasks)
        return nn.TransferPrompts(self.start(model, setup, count=len(names)), setup.routing, names)

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        super().attach(model, setup)
        nn.attach_state(model, SourceTasks(setup.sources))

    def fit(self, model: torch.nn.Module, trainer: Trainer) -> None:
        source, known = _source(model)
        source.joint = self.transfer == "mixture"
        try:
            trainer.run(share=1.0 if known else self.source_share)
        finally:
            source.joint = False
        if not known:
            self._start(source, known)
            trainer.run(share=1 - self.source_share)

    def adapt(self, model: torch.nn.Module, trainer: Trainer) -> None:
        source, known = _source(model)
        compares = self.transfer in ("best", "weighted")
        if compares:
            trainer.run(share=self.early_share)
        self._start(source, known)
        trainer.run(share=1 - self.early_share if compares else 1.0)

    def _start(self, source: nn.TransferPrompts, known: int) -> None:
        """Start the targets from the sources."""
        import torch

        sources, targets = slice(known or None), slice(known, None)
        if self.transfer == "mixture":
            source.spread_first(targets)
            return
        alike = source.alike(sources, targets, self.similarity)
        weights = nn.transfer_weights(alike, self.top if self.transfer == "weighted" else 1)
        if self.transfer == "task":
            weights = torch.zeros_like(alike)
            weights[source.names.index(self.from_task)] = 1
        source.transfer(sources, targets, weights)


def _source(model: torch.nn.Module) -> tuple[nn.TransferPrompts, int]:
    """What makes the prompts, and how many of the first tasks are sources and no targets."""
    source = prompt_of(model).source
    assert isinstance(source, nn.TransferPrompts)
    return source, nn.get_state(model, SourceTasks).count


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Spot]
