"""Adapters whose weights come from a network that reads what they are for: HyperFormer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.nn.blocks.adapters import Adapter, AdapterBank, adapter_forward
from mtlbench.nn.blocks.sublayers import BLOCKS

NORM_EPS = 1e-6
ACTIVATION = "gelu_new"
STD = 0.01
"""Of every linear's initial values; generated norm scales are then near 0 and the adapters near the identity."""


class Linear(nn.Module):
    """``W x + b`` in the type of its weights, whatever autocast says."""

    def __init__(self, width: int, out: int, draw: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, width, generator=draw) * STD)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Generators(nn.Module):
    """Linear maps from a projected embedding ``[tasks, projected]`` to all that an adapter consists of."""

    def __init__(self, projected: int, width: int, bottleneck: int, draw: torch.Generator) -> None:
        super().__init__()
        self.width, self.bottleneck = width, bottleneck
        self.down = Linear(projected, bottleneck * width, draw)
        self.down_bias = Linear(projected, bottleneck, draw)
        self.up = Linear(projected, width * bottleneck, draw)
        self.up_bias = Linear(projected, width, draw)
        self.norm_weight = Linear(projected, width, draw)
        self.norm_bias = Linear(projected, width, draw)

    def forward(self, embedding: Tensor) -> AdapterBank:
        """The weights for each row of ``embedding``."""
        return AdapterBank(
            down=self.down(embedding).view(-1, self.bottleneck, self.width),
            down_bias=self.down_bias(embedding),
            up=self.up(embedding).view(-1, self.width, self.bottleneck),
            up_bias=self.up_bias(embedding),
            norm_weight=self.norm_weight(embedding),
            norm_bias=self.norm_bias(embedding),
        )


class StackHypernet(nn.Module):
    """Makes the adapters of the layers of one stack.

    ``I = LN(W_2 relu(W_1 [z_task; z_layer (; z_block)] + b_1) + b_2)``, and every weight is a linear map of ``I``.

    Args:
        layers: Of the stack.
        width: Of its hidden states.
        task_width: Of the embeddings of tasks, layers and blocks.
        hidden: Of the projection.
        projected: Width of ``I``.
        shared: One set of linear maps for both blocks, which an embedding tells apart (HyperFormer++), instead of two.
    """

    def __init__(
        self,
        *,
        layers: int,
        width: int,
        bottleneck: int,
        task_width: int,
        hidden: int,
        projected: int,
        shared: bool,
        draw: torch.Generator,
    ) -> None:
        super().__init__()
        self.layers = nn.Parameter(torch.randn(layers, task_width, generator=draw))
        self.blocks = nn.Parameter(torch.randn(len(BLOCKS), task_width, generator=draw)) if shared else None
        self.inner = Linear(task_width * (3 if shared else 2), hidden, draw)
        self.outer = Linear(hidden, projected, draw)
        self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(projected)), nn.Parameter(torch.zeros(projected))
        self.generators = nn.ModuleList(
            Generators(projected, width, bottleneck, draw) for _ in range(1 if shared else len(BLOCKS))
        )

    def bank(self, tasks: Tensor, layer: int, block: int) -> AdapterBank:
        """The weights of one place for the task embeddings ``tasks [tasks, task_width]``."""
        with torch.autocast(tasks.device.type, enabled=False):
            places = [self.layers[layer], *([] if self.blocks is None else [self.blocks[block]])]
            embedding = torch.cat([tasks, *(place.expand(len(tasks), -1) for place in places)], dim=1)
            projected = self.outer(F.relu(self.inner(embedding)))
            projected = F.layer_norm(projected, projected.shape[-1:], self.norm_weight, self.norm_bias, NORM_EPS)
            made: AdapterBank = self.generators[block % len(self.generators)](projected)
        return made


class Hypernet(nn.Module):
    """The embeddings of the tasks and a network for each stack: a submodule of the model, ``model.mtlbench_hypernet``.

    Attributes:
        on: Without it the adapters add nothing.
    """

    def __init__(self, tasks: Tensor, stacks: dict[str, StackHypernet]) -> None:
        super().__init__()
        self.tasks = nn.Parameter(tasks)
        self.stacks = nn.ModuleDict({_key(name): stack for name, stack in stacks.items()})
        self.on = True

    def bank(self, stack: str, layer: int, block: int) -> AdapterBank:
        """The weights of one place for all tasks."""
        network = self.stacks[_key(stack)]
        assert isinstance(network, StackHypernet)
        return network.bank(self.tasks, layer, block)


class GeneratedAdapter(nn.Module):
    """The adapter of one place. Its weights are made again in every forward: they are far larger than what makes them.

    The network belongs to the model, not to each of its places.
    """

    def __init__(self, hypernet: Hypernet, stack: str, layer: int, block: int) -> None:
        super().__init__()
        self._of = (hypernet,)  # in a tuple, so that it is no submodule of the place
        self._place = (stack, layer, block)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """``x [rows, length, width]`` and what the adapter of each row's task adds."""
        (hypernet,) = self._of
        return adapter_forward(x, hypernet.bank(*self._place), routing, ACTIVATION) if hypernet.on else x

    @torch.no_grad()
    def static(self) -> Adapter:
        """The adapters of all tasks as constants."""
        (hypernet,) = self._of
        return Adapter(hypernet.bank(*self._place), ACTIVATION, trains=False)


def _key(name: str) -> str:
    return name.replace(".", "_")
