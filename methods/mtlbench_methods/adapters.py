"""Bottleneck adapters: Houlsby's behind attention and feed-forward blocks, Pfeiffer's behind the latter alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mtlbench import Method, Setup, Value, hookimpl, nn
from mtlbench.errors import RequestError
from mtlbench_methods.settings import backbone_width, check

if TYPE_CHECKING:
    import torch


ACTIVATIONS = ("relu", "gelu", "gelu_new", "swish")
STD = 0.02
"""Of initial values, as AdapterHub's ``bert`` start has it."""


@dataclass(frozen=True, kw_only=True)
class Houlsby(Method):
    """``x + U f(D x + b_D) + b_U`` on the output ``x`` of each self-attention and feed-forward block, for each task.

    The reduction and ``f`` are AdapterHub's; ``U`` starts at zero, so that training starts from the backbone itself.
    Attention to an encoder's output has no adapter, as in the multi-task code bases on T5.
    """

    name: ClassVar[str] = "houlsby"
    source: ClassVar[str] = (
        "Houlsby et al. 2019, arXiv:1902.00751; adapter-hub/adapters:src/adapters/configuration/adapter_config.py "
        "(DoubleSeqBnConfig)"
    )
    size_field: ClassVar[str] = "reduction"
    blocks: ClassVar[tuple[int, ...]] = (0, 1)
    """Places that have one: attention, feed-forward block."""

    reduction: int = 16
    """The bottleneck is the backbone's width divided by it."""
    activation: str = "swish"
    """``f``: ``relu``, ``gelu``, ``gelu_new`` (its tanh form) or ``swish``."""
    per_task: bool = True
    """An adapter for each task, taken by each row of a batch, or one for all."""
    zero_start: bool = True
    """``U`` starts at zero; otherwise at N(0, 0.02^2), as ``D`` always does."""
    norms: bool = False
    """Train the backbone's layer norms too, which then belong to all tasks, as in Houlsby et al. and Compacter's code.
    """

    def __post_init__(self) -> None:
        check(self, "reduction", holds=self.reduction >= 1, allowed="a whole number of at least 1")
        check(
            self, "activation", holds=self.activation in ACTIVATIONS, allowed=f"{', '.join(ACTIVATIONS[:-1])} or swish"
        )

    @property
    def task_routed(self) -> bool:
        return self.per_task

    @property
    def identity_at_start(self) -> bool:
        return self.zero_start

    def sized(self, size: int, setup: Setup) -> Mapping[str, Value]:
        """``size`` is the bottleneck, as far as whole reductions reach it."""
        return {"reduction": max(1, backbone_width(setup) // size)}

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:

        places = [place for place in nn.find_sublayers(setup.target_modules, model) if place.block in self.blocks]
        width = nn.block_width(model, places)
        if self.reduction > width:
            raise RequestError(
                f"{self.name}[reduction={self.reduction}]: the backbone is {width} wide, which leaves no bottleneck. "
                f"Take at most {width}."
            )
        nn.insert_after(model, places, lambda place, width: self._adapter(place, width, setup), setup.routing)
        if self.norms:
            nn.unfreeze_norms(model)

    def _adapter(self, place: nn.Sublayer, width: int, setup: Setup) -> nn.Adapter:
        import torch

        tasks, bottleneck = len(setup.tasks) if self.per_task else 1, width // self.reduction
        draw = nn.seeded_generator(setup.seed, place.name)
        # every task starts from the same one
        down, up = (STD * torch.randn(shape, generator=draw) for shape in ((bottleneck, width), (width, bottleneck)))
        bank = nn.AdapterBank(
            down=down.expand(tasks, -1, -1).clone(),
            down_bias=torch.zeros(tasks, bottleneck),
            up=(up * (not self.zero_start)).expand(tasks, -1, -1).clone(),
            up_bias=torch.zeros(tasks, width),
        )
        return nn.Adapter(bank, self.activation)

    def finish(self, model: torch.nn.Module) -> None:
        """Round layer norms that trained as the backbone's are."""
        nn.restore_norm_dtypes(model)


@dataclass(frozen=True, kw_only=True)
class Pfeiffer(Houlsby):
    """``x + U relu(D x + b_D) + b_U`` on the output ``x`` of each feed-forward block, for each task."""

    name: ClassVar[str] = "pfeiffer"
    source: ClassVar[str] = (
        "Pfeiffer et al. 2021, arXiv:2005.00247; adapter-hub/adapters:src/adapters/configuration/adapter_config.py "
        "(SeqBnConfig)"
    )
    blocks: ClassVar[tuple[int, ...]] = (1,)

    activation: str = "relu"


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Houlsby, Pfeiffer]
