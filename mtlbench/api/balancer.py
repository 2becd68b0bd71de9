"""The contract of a balancer: how the tasks of a step weigh against each other, whatever the method."""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mtlbench.api.method import Value

if TYPE_CHECKING:
    from torch import Tensor


class TaskWeights:
    """What a balancer holds during the training of one cell. Override both methods if there is state between steps."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors on the CPU, numbers, strings, ``None``, and lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


class GradientWeights(TaskWeights, ABC):
    """Weights from the gradients of the tasks in a step."""

    @abstractmethod
    def weights(self, gramian: Tensor, tasks: Sequence[int]) -> Tensor:
        """The weights ``[present]`` with which the gradients of the tasks are summed.

        Random numbers of torch may be drawn: they are seeded for each step.

        Args:
            gramian: Inner products of the gradients of the tasks' mean losses, float64 on the CPU
                ``[present, present]``.
            tasks: Ids of the tasks that the step has rows of, ascending, at least two.
        """


class LossWeights(TaskWeights, ABC):
    """Weights from the losses of earlier steps."""

    @abstractmethod
    def weights(self) -> Tensor:
        """The weight of each task's mean loss in the next step, on the CPU ``[tasks]``: the loss of a step is the mean
        over the tasks present of weight times loss."""

    @abstractmethod
    def observe(self, losses: Tensor, tasks: Sequence[int]) -> None:
        """Take in a step: mean losses of the tasks it had rows of, float64 on the CPU ``[present]``, and their ids."""


@dataclass(frozen=True, kw_only=True)
class Balancer(ABC):
    """A way to balance tasks; its dataclass fields are its settings, given as ``name[field=value]``.

    Import torch inside the functions that use it, so that planning stays fast.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """Paper, and reference code."""
    reads: ClassVar[Literal["gradients", "losses"]] = "gradients"
    """What weights follow from: :meth:`start` gives :class:`GradientWeights` or :class:`LossWeights`. ``gradients``
    costs one forward and backward for each task in a step."""

    @abstractmethod
    def start(self, tasks: int) -> GradientWeights | LossWeights:
        """The weights at the start of a cell with so many tasks."""

    def missing(self) -> str | None:
        """What must be installed before it can be used, as a command, or ``None``."""
        return None

    @classmethod
    def setting_types(cls) -> Mapping[str, Any]:
        """The type of each setting by name."""
        hints = typing.get_type_hints(cls)
        return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}

    def text(self) -> str:
        """The balancer as a protocol names it: its name, with the settings that are not at their defaults."""
        changed: dict[str, Value] = {
            f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default
        }
        inner = ",".join(f"{name}={str(v).lower() if isinstance(v, bool) else v}" for name, v in changed.items())
        return f"{self.name}[{inner}]" if inner else self.name
