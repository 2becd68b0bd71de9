"""The last layer computed only where its output is read, for rows that are read at different places.

Behind the attention of the last layer no token looks at another, so its output projection and its feed-forward block
need only the tokens whose logits are wanted. Training reads the same places of every row:
:mod:`mtlbench.engine.tail`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.engine.routing import Routing
from mtlbench.engine.tail import PARTS


class Needed:
    """Some tokens of a batch, as rows of one task each, so that task-routed layers treat them as they would before.

    Args:
        index: Places of the flattened ``[rows * length]``, in any order, each once.
        tasks: Task id of each place.
    """

    def __init__(self, index: Sequence[int], tasks: Sequence[int], *, device: torch.device) -> None:
        by_task: dict[int, list[int]] = {}
        for number, task in enumerate(tasks):
            by_task.setdefault(task, []).append(number)
        width = max(map(len, by_task.values()))
        self.shape = (len(by_task), width)
        padded = [n for numbers in by_task.values() for n in [*numbers, *[numbers[0]] * (width - len(numbers))]]
        real = [row * width + at for row, numbers in enumerate(by_task.values()) for at in range(len(numbers))]
        self.tasks = torch.tensor(list(by_task), device=device)
        self.index = torch.tensor([index[n] for n in padded], device=device)
        self.real = torch.tensor(real, device=device)
        self.back = self.index[self.real]


def behind_attention(model: Any) -> list[nn.Module]:
    """What of the last layer treats each token alone; empty where it is not known by name."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return []
    known = dict(layers[-1].named_modules())
    return [known[name] for name in PARTS if name in known]


@contextmanager
def narrowed(modules: Sequence[nn.Module], needed: Needed, routing: Routing) -> Iterator[None]:
    """Inside, ``modules`` compute the needed tokens and give zero for all others."""
    handles = []
    for module in modules:
        inner = _Narrow(needed, routing)
        handles += [module.register_forward_pre_hook(inner.enter), module.register_forward_hook(inner.leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Narrow:
    """The hooks of one module."""

    def __init__(self, needed: Needed, routing: Routing) -> None:
        self._needed, self._routing = needed, routing
        self._stack = ExitStack()
        self._shape: tuple[int, ...] = ()

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = args[0]
        self._shape = tuple(x.shape)
        self._stack.enter_context(self._routing.of(self._needed.tasks))
        chosen = x.reshape(-1, x.shape[-1]).index_select(0, self._needed.index)
        return (chosen.view(*self._needed.shape, x.shape[-1]), *args[1:])

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        self._stack.close()
        chosen = output.reshape(-1, output.shape[-1]).index_select(0, self._needed.real)
        whole = chosen.new_zeros(self._shape[0] * self._shape[1], chosen.shape[-1])
        return whole.index_copy_(0, self._needed.back, chosen).view(*self._shape[:2], -1)
