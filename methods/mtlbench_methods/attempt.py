"""ATTEMPT: each row's prompt is its task's plus a mixture of source prompts, weighted by attention to the row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Trainer, hookimpl, nn
from mtlbench_methods.settings import check
from mtlbench_methods.soft_prompt_method import SoftPromptMethod, prompt_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Attempt(SoftPromptMethod):
    """Source prompts are trained first and then frozen; targets and the attention over prompts are trained behind them.

    With ``--sources``, those are the sources and the other tasks the targets, which start from the first source as in
    the official code. Without, every task is both: a part of the budget trains its source prompt, the rest its target,
    which starts from it.

    Where the official code and the paper differ: the norm behind the attention is trained, as the paper counts it; the
    attention has its own learning rate, which the code loses; tokens are pooled without padding, which the code takes
    in. On a decoder-only backbone the attention looks at the question alone and not at the answer behind it. The
    attention starts at random, as there is no pretrained one to take.
    """

    name: ClassVar[str] = "attempt"
    source: ClassVar[str] = (
        "Asai et al. 2022, arXiv:2205.11961, section 3; AkariAsai/ATTEMPT@b5121e5:attempt/third_party/models/t5/"
        "modeling_t5.py"
    )
    task_routed: ClassVar[bool] = True
    resumable: ClassVar[bool] = True

    hidden: int = 100
    """Width of the attention's bottleneck."""
    temperature: float | None = None
    """Divides the attention's scores; ``None`` is e times the width of the embeddings: 2087 on T5-base, as in every
    official configuration."""
    mix_target: bool = True
    """Whether a target's own prompt takes part in its mixture."""
    attention_rate: float = 1 / 3
    """Learning rate of the attention by the prompts': 0.1 to 0.3 in the official multi-task configuration."""
    source_share: float = 0.5
    """Part of the budget that trains source prompts, where no ``--sources`` say what does."""

    def __post_init__(self) -> None:
        self.check_prompt()
        check(self, "hidden", holds=self.hidden >= 1, allowed="a whole number of at least 1")
        positive = self.temperature is None or 0 < self.temperature < math.inf
        check(self, "temperature", holds=positive, allowed="none or above 0")
        check(self, "attention_rate", holds=0 < self.attention_rate < math.inf, allowed="above 0")
        check(self, "source_share", holds=0 < self.source_share < 1, allowed="above 0 and below 1")

    def refuse(self, setup: Setup) -> str | None:
        if not setup.sources and setup.total_steps < 2:
            return "source prompts and targets need a step each: raise steps or epochs, or name --sources."
        return None

    def prompts(self, model: torch.nn.Module, setup: Setup) -> nn.PromptSource:

        sources = self.start(model, setup, count=setup.sources or len(setup.tasks))
        targets = len(setup.tasks) - setup.sources
        return nn.MixedPrompts(
            sources,
            sources[:1].expand(targets, -1, -1).clone() if setup.sources else sources.clone(),
            setup.routing,
            tasks=len(setup.tasks),
            hidden=self.hidden,
            temperature=self.temperature or math.e * sources.shape[2],
            mix_target=self.mix_target,
            draw=nn.seeded_generator(setup.seed, "attempt"),
        )

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        source: Any = prompt_of(model).source
        rate = self.rate(model, learning_rate)
        attention = [source.down, source.up, source.norm_weight, source.norm_bias]
        return [
            {"params": [source.sources, source.targets], "lr": rate, "weight_decay": 0.0},
            {"params": attention, "lr": rate * self.attention_rate, "weight_decay": 0.0},
        ]

    def fit(self, model: torch.nn.Module, trainer: Trainer) -> None:
        source: Any = prompt_of(model).source
        both = not source.first_target
        self._train_sources(source, trainer, share=self.source_share if both else 1.0)
        if both:
            source.start_targets()
            trainer.run(share=1 - self.source_share)

    def adapt(self, model: torch.nn.Module, trainer: Trainer) -> None:
        source: Any = prompt_of(model).source
        source.start_targets()
        trainer.run()

    def _train_sources(self, source: Any, trainer: Trainer, *, share: float) -> None:
        source.mixing = False
        try:
            trainer.run(share=share)
        finally:
            source.mixing = True


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Attempt]
