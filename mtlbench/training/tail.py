"""The last decoder layer, computed only where its output is read.

Behind the attention of the last layer no token looks at another, so its output projection and its feed-forward block
need only the tokens whose logits are wanted. The other tokens keep the residual stream without what these would add,
and get exact zero gradients from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.nn.soft_prompts.prompt import SoftPrompt, soft_prompt_of

PARTS = ("self_attn.o_proj", "mlp")
"""What the last layer computes for each position by itself."""


@dataclass(frozen=True)
class Places:
    """Some tokens of a batch, arranged as rows so that task-routed layers treat them as they would before."""

    index: Tensor
    """Places of the flattened ``[rows * length]``: ``[rows or tasks, width]``."""
    distinct: Tensor | None = None
    """Which of the flattened index are to be written back, each place once; ``None`` for all."""
    tasks: Tensor | None = None
    """Task id of each row of the index; ``None`` where its rows are those of the batch."""


def places_by_task(index: Sequence[int], tasks: Sequence[int]) -> Places:
    """Tokens that are read at different places of their rows, with a row of the index for each task; on the host.

    Args:
        index: Places of the flattened ``[rows * length]``, in any order, each once.
        tasks: Task id of each place.
    """
    by_task: dict[int, list[int]] = {}
    for place, task in zip(index, tasks, strict=True):
        by_task.setdefault(task, []).append(place)
    width = max(map(len, by_task.values()))
    padded = [[*places, *[places[0]] * (width - len(places))] for places in by_task.values()]
    distinct = [row * width + at for row, places in enumerate(by_task.values()) for at in range(len(places))]
    return Places(
        index=torch.tensor(padded),
        distinct=torch.tensor(distinct),
        tasks=torch.tensor(list(by_task)),
    )


@contextmanager
def narrow_tail(model: Any, places: Places | None, routing: Routing) -> Iterator[None]:
    """Inside, a forward of a decoder-only ``model`` computes :data:`PARTS` of its last layer at ``places`` only.

    ``None`` computes all, as does a backbone that is not built of such layers. A backward belongs inside too, as layers
    may be computed again there.
    """
    if places is None:
        yield
        return
    with ExitStack() as stack:
        for part in _parts(model):
            inner = _Narrow(places, routing, soft_prompt_of(model))
            # first of all hooks, so that others see the rows that the part reads
            enter = part.register_forward_pre_hook(inner.enter, prepend=True)
            for handle in (enter, part.register_forward_hook(inner.leave)):
                stack.callback(handle.remove)
        yield


class _Narrow:
    """The hooks of one module."""

    def __init__(self, places: Places, routing: Routing, prompt: SoftPrompt | None) -> None:
        self._places, self._routing, self._prompt = places, routing, prompt
        self._back = places.index
        self._routed = ExitStack()
        self._rows = self._length = 0

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = args[0]
        self._rows, self._length, width = x.shape
        tasks = self._places.tasks
        self._routed.enter_context(nullcontext() if tasks is None else self._routing.of(tasks))
        flat = self._places.index.reshape(-1)
        flat = flat if self._prompt is None else self._prompt.moved(flat, rows=self._rows)
        self._back = flat if self._places.distinct is None else flat.index_select(0, self._places.distinct)
        chosen = x.reshape(-1, width).index_select(0, flat)
        return (chosen.view(*self._places.index.shape, width), *args[1:])

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self._routed.close()
        if isinstance(output, tuple):  # a mixture of experts may give what its router chose too
            return (self._everywhere(output[0]), *output[1:])
        return self._everywhere(output)

    def _everywhere(self, output: Tensor) -> Tensor:
        chosen = output.reshape(-1, output.shape[-1])
        if self._places.distinct is not None:
            chosen = chosen.index_select(0, self._places.distinct)
        whole = chosen.new_zeros(self._rows * self._length, chosen.shape[-1])
        return whole.index_copy(0, self._back, chosen).view(self._rows, self._length, -1)


def _parts(model: Any) -> list[nn.Module]:
    """Those of the last layer that are known by name."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return []
    known = dict(layers[-1].named_modules())
    return [known[name] for name in PARTS if name in known]
