"""Key-value cache of shared prefixes: computed once, and prepended to the keys and values of every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from mtlbench.api.routing import Routing
from mtlbench.backbones.head import logits_at
from mtlbench.backbones.transfer import to_device
from mtlbench.tokens.encode import Tokens


class SharedPrefixes:
    """Keys and values of shared prefixes, computed in one batch.

    Args:
        groups: Task id and tokens of each prefix.
        pad_id: Pads shorter prefixes on the right.
    """

    def __init__(
        self, model: nn.Module, routing: Routing, groups: Sequence[tuple[int, Tokens]], *, pad_id: int
    ) -> None:
        device = next(model.parameters()).device
        self.width = max(len(tokens) for _, tokens in groups)
        self._numbers = {group: number for number, group in enumerate(groups)}
        ids = [[*tokens, *[pad_id] * (self.width - len(tokens))] for _, tokens in groups]
        inputs = {
            "ids": torch.tensor(ids),
            "lengths": torch.tensor([len(tokens) for _, tokens in groups]),
            "tasks": torch.tensor([task for task, _ in groups]),
        }
        inputs = to_device(inputs, device)
        self._lengths = inputs["lengths"]
        cache = DynamicCache()
        first = torch.zeros(1, dtype=torch.int64, device=device)  # a single logit row, which is not used
        with routing.of(inputs["tasks"]), logits_at(model, first):
            model(input_ids=inputs["ids"], past_key_values=cache, use_cache=True)
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]

    def numbers(self, groups: Sequence[tuple[int, Tokens]]) -> list[int]:
        """Which of the prefixes each of these is."""
        return [self._numbers[group] for group in groups]

    def before(self, index: Tensor) -> tuple[Cache, Tensor]:
        """The cache for rows behind the prefixes with the numbers ``index [rows]``, and the positions that each attends
        to ``[rows, width]``."""
        seen = torch.arange(self.width, device=index.device) < self._lengths[index][:, None]
        rows = None if len(self._numbers) == 1 else index
        return Cache(layers=[_Before(keys, values, rows) for keys, values in self._layers]), seen

    def growing(self, rows: int) -> Cache:
        """For a single prefix, a cache that also stores the generated tokens of ``rows`` rows."""
        return Cache(
            layers=[
                _Growing(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
                for keys, values in self._layers
            ]
        )


class _Before(DynamicLayer):  # type: ignore[misc]
    """Prepends the keys and values of a prefix to those of the current rows, which it does not store."""

    def __init__(self, keys: Any, values: Any, index: Tensor | None) -> None:
        super().__init__()
        self.keys, self.values, self._index = keys, values, index
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self._joined(self.keys, key_states), self._joined(self.values, value_states)

    def _joined(self, prefix: Tensor, states: Tensor) -> Tensor:
        rows = (
            prefix.expand(states.shape[0], -1, -1, -1) if self._index is None else prefix.index_select(0, self._index)
        )
        return torch.cat([rows.to(states.dtype), states], dim=2)


class _Growing(DynamicLayer):  # type: ignore[misc]
    """A cache layer that starts with the keys and values of a prefix."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
