"""Keys and values of what many rows begin with, read once and put before those of every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from mtlbench.api.routing import Routing
from mtlbench.backbones.head import picked_rows
from mtlbench.tokens.encode import Tokens


class SharedPrefixes:
    """The trunks of some rows, read in one batch.

    Args:
        groups: Task id and tokens of each trunk.
        pad_id: Fills the shorter ones on the right, where nothing looks.
    """

    def __init__(
        self, model: nn.Module, routing: Routing, groups: Sequence[tuple[int, Tokens]], *, pad_id: int
    ) -> None:
        device = next(model.parameters()).device
        self.width = max(len(tokens) for _, tokens in groups)
        self._numbers = {group: number for number, group in enumerate(groups)}
        self._lengths = torch.tensor([len(tokens) for _, tokens in groups], device=device)
        ids = [[*tokens, *[pad_id] * (self.width - len(tokens))] for _, tokens in groups]
        cache = DynamicCache()
        first = torch.zeros(1, dtype=torch.int64, device=device)  # one row of logits, for no one
        tasks = torch.tensor([task for task, _ in groups], device=device)
        with routing.of(tasks), picked_rows(model, first):
            model(input_ids=torch.tensor(ids, device=device), past_key_values=cache, use_cache=True)
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]

    def before(self, groups: Sequence[tuple[int, Tokens]]) -> tuple[Cache, Tensor]:
        """For rows of these groups the cache, and which of its positions each row sees ``[rows, width]``."""
        number = [self._numbers[group] for group in groups]
        index = None if len(self._numbers) == 1 else torch.tensor(number, device=self._lengths.device)
        lengths = self._lengths.expand(len(groups)) if index is None else self._lengths[index]
        seen = torch.arange(self.width, device=lengths.device) < lengths[:, None]
        return Cache(layers=[_Before(keys, values, index) for keys, values in self._layers]), seen

    def growing(self, rows: int) -> Cache:
        """Of a single trunk, the cache for rows that are written on: it keeps what they add."""
        return Cache(
            layers=[
                _Growing(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
                for keys, values in self._layers
            ]
        )


class _Before(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values before those of the rows in flight; it keeps none of theirs."""

    def __init__(self, keys: Any, values: Any, index: Tensor | None) -> None:
        super().__init__()
        self.keys, self.values, self._index = keys, values, index
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self._joined(self.keys, key_states), self._joined(self.values, value_states)

    def _joined(self, trunk: Tensor, own: Tensor) -> Tensor:
        rows = trunk.expand(own.shape[0], -1, -1, -1) if self._index is None else trunk.index_select(0, self._index)
        return torch.cat([rows.to(own.dtype), own], dim=2)


class _Growing(DynamicLayer):  # type: ignore[misc]
    """A layer that begins with keys and values which were computed before."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
