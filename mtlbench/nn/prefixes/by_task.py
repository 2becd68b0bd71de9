"""One prefix per task: an encoder for each, so that each can find its own architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.nn.prefixes.nas import PrefixNAS


class TaskPrefixes(nn.Module):
    """The prefix of each row's task. The encoders run one after another: their architectures differ."""

    def __init__(self, encoders: Sequence[PrefixNAS], names: Sequence[str], routing: Routing) -> None:
        super().__init__()
        self.by_task = nn.ModuleList(encoders)
        self.names, self.routing = tuple(names), routing

    def encoders(self) -> list[PrefixNAS]:
        """One per task."""
        return [encoder for encoder in self.by_task if isinstance(encoder, PrefixNAS)]

    def forward(self) -> Tensor:
        """The prefixes ``[layers, 2, rows, kv_heads, length, head_dim]`` of the rows in flight."""
        return _of_rows(torch.stack([encoder() for encoder in self.encoders()], dim=2), self.routing)

    def static(self) -> StaticTaskPrefixes:
        """The prefixes as constants."""
        kv = torch.stack([encoder.collapse() for encoder in self.encoders()], dim=2)
        return StaticTaskPrefixes(kv, self.routing, self.notes())

    def notes(self) -> dict[str, Any]:
        """What each encoder wants remembered."""
        notes = [encoder.notes()["prefix_nas"] for encoder in self.encoders()]
        return {"prefix_nas": {"by_task": dict(zip(self.names, notes, strict=True))}}


class StaticTaskPrefixes(nn.Module):
    """Fixed prefixes by task, ``kv [layers, 2, tasks, kv_heads, length, head_dim]``."""

    kv: Tensor

    def __init__(self, kv: Tensor, routing: Routing, notes: dict[str, Any]) -> None:
        super().__init__()
        self.register_buffer("kv", kv)
        self.routing, self._notes = routing, notes

    def forward(self) -> Tensor:
        """Those of the rows in flight."""
        return _of_rows(self.kv, self.routing)

    def notes(self) -> dict[str, Any]:
        """What the encoders wanted remembered."""
        return self._notes


def _of_rows(kv: Tensor, routing: Routing) -> Tensor:
    return kv.index_select(2, routing.tasks)
