"""Prefix encoders: the prefix itself, its reparameterisation by a small network, and a searching one for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.nn.prefixes.inject import GatedPrefix, PrefixShape, StaticPrefix, StaticTaskPrefixes, prefixes_of_rows
from mtlbench.nn.prefixes.nas import PrefixNAS


class DirectPrefix(nn.Module):
    """The prefix as parameters (Li & Liang 2021, without reparameterisation).

    Args:
        shape: What one prefix token holds.
        length: Prefix tokens.
        draw: Makes the initial values, N(0, std^2).
    """

    def __init__(self, *, shape: PrefixShape, length: int, draw: torch.Generator, std: float = 0.02) -> None:
        super().__init__()
        layers, heads, size = shape
        self.kv = nn.Parameter(torch.randn(layers, 2, heads, length, size, generator=draw) * std)

    def forward(self) -> Tensor:
        """The prefix ``[layers, 2, kv_heads, length, head_dim]``."""
        return self.kv

    def static(self) -> StaticPrefix:
        """The prefix as a constant."""
        return StaticPrefix(self().detach().clone(), self.notes())

    def notes(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}


class ReparameterisedPrefix(nn.Module):
    """``W_2 tanh(W_1 e + b_1) + b_2`` for each prefix token ``e`` (Li & Liang 2021, section 4.3); float32.

    Args:
        shape: What one prefix token holds.
        length: Prefix tokens.
        width: Of the embeddings.
        hidden: Of the network.
        draw: Makes the initial values: embeddings N(0, 1), linears Kaiming-uniform as torch draws them.
    """

    def __init__(self, *, shape: PrefixShape, length: int, width: int, hidden: int, draw: torch.Generator) -> None:
        super().__init__()
        self.shape, self.length = shape, length
        numbers = shape.layers * 2 * shape.kv_heads * shape.head_dim
        self.embedding = nn.Parameter(torch.randn(length, width, generator=draw))
        self.inner = nn.Parameter(_uniform(hidden, width, draw))
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        self.output = nn.Parameter(_uniform(numbers, hidden, draw))
        self.output_bias = nn.Parameter(torch.zeros(numbers))

    def forward(self) -> Tensor:
        """The prefix ``[layers, 2, kv_heads, length, head_dim]``."""
        with torch.autocast(self.embedding.device.type, enabled=False):
            inner = torch.tanh(F.linear(self.embedding, self.inner, self.inner_bias))
            flat = F.linear(inner, self.output, self.output_bias)
        layers, heads, size = self.shape
        return flat.view(self.length, layers, 2, heads, size).permute(1, 2, 3, 0, 4)

    def static(self) -> StaticPrefix:
        """The prefix as a constant."""
        return StaticPrefix(self().detach().contiguous(), self.notes())

    def notes(self) -> dict[str, Any]:
        """Numbers of the network that is dropped after training."""
        return {"encoder_parameters": sum(p.numel() for p in self.parameters())}


class TaskPrefixes(nn.Module):
    """The prefix of each row's task. The encoders run one after another: their architectures differ."""

    def __init__(self, encoders: Sequence[PrefixNAS], names: Sequence[str], routing: Routing) -> None:
        super().__init__()
        self.by_task = nn.ModuleList(encoders)
        self.names, self.routing = tuple(names), routing

    def encoders(self) -> list[PrefixNAS]:
        """One per task."""
        return [encoder for encoder in self.by_task if isinstance(encoder, PrefixNAS)]

    def forward(self) -> Tensor | GatedPrefix:
        """The prefixes ``[layers, 2, rows, kv_heads, length, head_dim]`` of the rows in flight."""
        kv = torch.stack([encoder() for encoder in self.encoders()], dim=2)
        return prefixes_of_rows(kv, None, self.routing)

    def static(self) -> StaticTaskPrefixes:
        """The prefixes as constants."""
        kv = torch.stack([encoder.collapse() for encoder in self.encoders()], dim=2)
        return StaticTaskPrefixes(kv, self.routing, notes=self.notes())

    def notes(self) -> dict[str, Any]:
        """What each encoder wants remembered."""
        notes = [encoder.notes()["prefix_nas"] for encoder in self.encoders()]
        return {"prefix_nas": {"by_task": dict(zip(self.names, notes, strict=True))}}


def _uniform(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    return torch.rand(rows, columns, generator=draw).mul_(2).sub_(1).div_(columns**0.5)
