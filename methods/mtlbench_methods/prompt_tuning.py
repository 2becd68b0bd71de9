"""Prompt tuning: trained vectors before the token embeddings of every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench_methods.soft_prompt_method import SoftPromptMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class PromptTuning(SoftPromptMethod):
    """One prompt shared by all tasks, or one for each (``per_task=true``), trained on all of them together.

    The paper trains one prompt per task with Adafactor; here it is AdamW, as in AkariAsai/ATTEMPT.
    """

    name: ClassVar[str] = "prompt_tuning"
    source: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691, section 2; positions as in a row of real tokens"

    per_task: bool = False

    def __post_init__(self) -> None:
        self.check_prompt()

    @property
    def task_routed(self) -> bool:
        return self.per_task

    def prompts(self, model: torch.nn.Module, setup: Setup) -> nn.PromptSource:

        if not self.per_task:
            return nn.TablePrompts(self.start(model, setup, count=1))
        return nn.TablePrompts(self.start(model, setup, count=len(setup.tasks)), setup.routing)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [PromptTuning]
