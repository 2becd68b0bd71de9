"""Prompts that attention layers read through their own frozen projections, as keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.distributed.shards_fit import is_shard
from mtlbench.errors import RequestError
from mtlbench.nn.prefixes.places import AttentionPlace

_ROLES = (("k_proj", "k"), ("v_proj", "v"))
"""Names of the linears that make keys, and values."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """The frozen parts of one attention layer that a prompt passes through."""

    key: nn.Linear
    value: nn.Linear
    norm: Any
    """Of the keys of each head (Qwen3), or ``None``."""


class PromptProjections:
    """``K = P W_k + b_k`` and ``V = P W_v + b_v`` of every layer of ``places``, without positions.

    The linears are those of the backbone, also where a method wrapped or merges them.

    Raises:
        RequestError: a layer has no such linears.
    """

    def __init__(self, places: Sequence[AttentionPlace], *, heads: int) -> None:
        self._layers = tuple(_layer(module) for place in places for module in place.layers)
        self._heads = heads
        self.width = self._layers[0].key.in_features
        if any(linear.in_features != self.width for layer in self._layers for linear in (layer.key, layer.value)):
            raise RequestError("The layers that take a prompt differ in width. Choose one place with `where`.")

    def linear(self, prompts: Tensor, *, bias: bool) -> Tensor:
        """``[layers, 2, tokens, kv_heads * head_dim]`` of ``prompts [layers, tokens, width]``, as wide as a backbone's
        weight or, under autocast, its type; without its ``bias`` where a sum is projected part by part."""
        found = []
        for layer, prompt in zip(self._layers, prompts.unbind(0), strict=True):
            pair = [
                F.linear(prompt.to(linear.weight.dtype), linear.weight, linear.bias if bias else None)
                for linear in (layer.key, layer.value)
            ]
            found.append(torch.stack(pair))
        return torch.stack(found)

    def by_head(self, flat: Tensor) -> Tensor:
        """``[layers, 2, tasks, kv_heads, length, head_dim]`` of ``flat [layers, 2, tasks, length, all heads]``."""
        kv = flat.view(*flat.shape[:-1], self._heads, -1).transpose(3, 4)
        if all(layer.norm is None for layer in self._layers):
            return kv
        normed = [
            kv[at, 0] if layer.norm is None else layer.norm(kv[at, 0]).to(kv.dtype)
            for at, layer in enumerate(self._layers)
        ]
        return torch.stack([torch.stack(normed), kv[:, 1]], dim=1)


def _layer(module: Any) -> _Layer:
    key, value = (next((_frozen(getattr(module, n)) for n in names if hasattr(module, n)), None) for names in _ROLES)
    if key is None or value is None:
        raise RequestError(
            f"{type(module).__name__} has no linear of its own for keys and for values (k_proj, v_proj or k, v), so no "
            "prompt can be read through them. Take a Llama-, Qwen-, Mistral- or T5-like backbone."
        )
    if is_shard(key.weight):
        raise RequestError("A prompt is read through weights of layers that are not running. Leave out --shard.")
    return _Layer(key, value, getattr(module, "k_norm", None))


def _frozen(module: Any) -> nn.Linear | None:
    """The backbone's linear below what methods put around it."""
    while not isinstance(module, nn.Linear):
        module = getattr(module, "base", None) or getattr(module, "base_layer", None)
        if module is None:
            return None
    return module
