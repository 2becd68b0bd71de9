"""BitFit: bias vectors alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench.errors import RequestError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """``W x + b + b_t`` in every projection, and the same behind every layer norm; ``b_t = 0`` at the start.

    Llama and T5 have no biases, so by default every projection of an attention and feed-forward block and every layer
    norm gets one, as ATTEMPT's code does; ``add_missing=false`` trains those that the backbone has.
    """

    name: ClassVar[str] = "bitfit"
    source: ClassVar[str] = (
        "Ben Zaken et al. 2022, arXiv:2106.10199; biases that T5 does not have: AkariAsai/ATTEMPT@b5121e5"
    )

    learning_rate: float | None = 3e-4
    add_missing: bool = True
    """Biases where the backbone has none."""
    per_task: bool = True
    """A set for each task, taken by each row of a batch, or one for all."""

    @property
    def task_routed(self) -> bool:
        return self.per_task

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:

        names = [*setup.target_modules, *nn.norm_names(model)]
        if not self.add_missing:
            names = [name for name in names if getattr(model.get_submodule(name), "bias", None) is not None]
        if not names:
            raise RequestError(
                f"{self.name}[add_missing=false]: {type(model).__name__} has no bias to train. Take add_missing=true, "
                "which adds them."
            )
        for name in names:
            nn.add_task_shift(model, name, tasks=len(setup.tasks) if self.per_task else 1, routing=setup.routing)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Biases have no weight decay."""
        trainable = [p for p in model.parameters() if p.requires_grad]
        return [{"params": trainable, "lr": learning_rate, "weight_decay": 0.0}]


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [BitFit]
