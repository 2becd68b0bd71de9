"""What methods that train soft prompts share: length and initial values, learning rates, export."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Value, nn
from mtlbench.errors import PluginError, RequestError
from mtlbench_methods.settings import check

if TYPE_CHECKING:
    import torch
    from torch import Tensor


STARTS = ("vocab", "random", "text")


@dataclass(frozen=True)
class SourceTasks:
    """How many of the first tasks are sources and no targets; kept with the model."""

    count: int


@dataclass(frozen=True, kw_only=True)
class SoftPromptMethod(Method):
    """Trained vectors before the token embeddings of every row; an encoder-decoder's stand in its encoder's input."""

    identity_at_start: ClassVar[bool] = False
    """A prompt takes attention from the first step on."""
    adapts: ClassVar[str] = "input"
    size_field: ClassVar[str] = "prompt_length"

    learning_rate: float | None = None
    """``None`` takes 0.3 times the root mean square of the token embeddings, at most 0.3: what Lester et al. take on
    T5, and some thousandths on a Llama, whose embeddings are small."""
    prompt_length: int = 100
    """Vectors before a row (Lester et al.'s)."""
    init: str = "vocab"
    """Initial values: ``vocab``, embeddings of tokens drawn from the 5000 first; ``random``, normal numbers as widely
    spread as embeddings; ``text``, embeddings of ``text``, repeated or cut to the length."""
    text: str = ""

    @abstractmethod
    def prompts(self, model: torch.nn.Module, setup: Setup) -> nn.PromptSource:
        """What makes the prompts."""

    def check_prompt(self) -> None:
        """Check the settings that every soft prompt has."""
        rate = self.learning_rate
        check(self, "learning_rate", holds=rate is None or 0 < rate < math.inf, allowed="none or above 0")
        check(self, "prompt_length", holds=self.prompt_length >= 1, allowed="a whole number of at least 1")
        check(self, "init", holds=self.init in STARTS, allowed=f"one of {', '.join(STARTS)}")
        if bool(self.text) != (self.init == "text"):
            raise RequestError(f"{self.name}[text={self.text}]: give text with init=text, and only there.")

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:

        nn.attach_soft_prompt(model, self.prompts(model, setup), setup.routing, longest=setup.max_length)

    def start(self, model: torch.nn.Module, setup: Setup, *, count: int) -> Tensor:
        """Initial values of ``count`` prompts ``[count, length, width]``."""
        return nn.init_prompts(
            model,
            count=count,
            length=self.prompt_length,
            how=self.init,
            text=self.text,
            encode=setup.encode,
            draw=nn.seeded_generator(setup.seed, "soft_prompt"),
        )

    def rate(self, model: torch.nn.Module, learning_rate: float) -> float:
        """The peak learning rate of the prompts."""
        return learning_rate if self.learning_rate is not None else nn.prompt_learning_rate(model)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        trained = [p for p in model.parameters() if p.requires_grad]
        return [{"params": trained, "lr": self.rate(model, learning_rate), "weight_decay": 0.0}]

    def switch(self, model: torch.nn.Module, *, on: bool) -> None:
        """Without its prompt the model is the stock one."""
        prompt_of(model).on = on

    def search_space(self, trial: Any) -> Mapping[str, Value]:
        """Learning rate and length."""
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-3, 0.5, log=True),
            "prompt_length": trial.suggest_int("prompt_length", 5, 100),
        }

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """A peft PromptTuning checkpoint; of prompts by task, for one task."""
        source: Any = prompt_of(model).source
        source = source.static() if hasattr(source, "static") else source
        if not hasattr(source, "of"):
            raise PluginError(f"{self.name} has a prompt for each row, which peft cannot express.")
        if self.task_routed and task is None:
            raise PluginError(f"{self.name} has a prompt for each task: choose the task to export.")
        nn.export_prompt(model, source.of(task), folder)


def prompt_of(model: torch.nn.Module) -> nn.SoftPrompt:
    """The attached prompt."""
    return nn.get_module(model, nn.SoftPrompt)
