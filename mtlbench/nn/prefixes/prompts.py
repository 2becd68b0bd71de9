"""Prompts that attention layers read through their own frozen projections, as keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.backbones.quantized import is_quantized
from mtlbench.distributed.shards_fit import is_shard
from mtlbench.errors import RequestError
from mtlbench.nn.prefixes.places import AttentionPlace

_ROLES = (("k_proj", "k"), ("v_proj", "v"))
"""Names of the linears that make keys, and values."""
_FUSED = ("qkv_proj", "c_attn", "query_key_value")
"""Names of linears that make queries, keys and values at once."""
_BY_HEAD = frozenset({"GPTNeoXAttention", "GPTBigCodeAttention"})
"""Attention whose fused linear gives query, key and value of one head after the other; others give all queries, all
keys, all values, as does GPT-BigCode where its heads share one key."""


@dataclass(frozen=True, eq=False)
class _Maker:
    """What makes keys, or values: a linear, or some rows of a fused one."""

    linear: nn.Linear
    rows: Tensor | None = None

    def of(self, prompt: Tensor, *, bias: bool) -> Tensor:
        """``[tokens, kv_heads * head_dim]`` of ``prompt [tokens, width]``."""
        if is_quantized(self.linear):
            dtype = self.linear.weight.dtype  # of what torchao unpacks to; bitsandbytes takes any input
            made: Tensor = self.linear(prompt.to(dtype) if dtype.is_floating_point else prompt)
            if self.linear.bias is not None and not bias:
                made = made - self.linear.bias.to(made.dtype)
            return made if self.rows is None else made.index_select(-1, self.rows.to(made.device))
        weight: Tensor = self.linear.weight
        added: Tensor | None = self.linear.bias if bias else None
        if self.rows is not None:
            weight = weight.index_select(0, self.rows.to(weight.device))
            added = None if added is None else added.index_select(0, self.rows.to(weight.device))
        return F.linear(prompt.to(weight.dtype), weight, added)


@dataclass(frozen=True, eq=False)
class _Layer:
    """The frozen parts of one attention layer that a prompt passes through."""

    key: _Maker
    value: _Maker
    norm: Any
    """Of the keys, or ``None``."""

    def normed(self, keys: Tensor) -> Tensor:
        """``keys [tasks, heads, length, head_dim]`` through the norm: of each head alone (Qwen3), of all heads at once
        (OLMo 2), or of each with a weight of its own (Cohere)."""
        if self.norm is None:
            return keys
        weight = getattr(self.norm, "weight", None)
        if weight is None or (weight.dim() == 1 and weight.numel() == keys.shape[-1]):
            normed: Tensor = self.norm(keys)
        elif weight.dim() == 1:
            by_token = keys.transpose(1, 2)
            normed = self.norm(by_token.flatten(2)).view(by_token.shape).transpose(1, 2)
        else:
            normed = self.norm(keys.transpose(1, 2)).transpose(1, 2)
        return normed.to(keys.dtype)


class PromptProjections:
    """``K = P W_k + b_k`` and ``V = P W_v + b_v`` of every layer of ``places``, without positions.

    The linears are those of the backbone, also where a method wrapped or merges them.

    Raises:
        RequestError: a layer has no such linears.
    """

    def __init__(self, places: Sequence[AttentionPlace], *, heads: int) -> None:
        self._layers = tuple(_layer(module, heads=heads) for place in places for module in place.layers)
        self._heads = heads
        linears = [maker.linear for layer in self._layers for maker in (layer.key, layer.value)]
        self.width = linears[0].in_features
        if any(linear.in_features != self.width for linear in linears):
            raise RequestError("The layers that take a prompt differ in width. Choose one place with `where`.")

    def linear(self, prompts: Tensor, *, bias: bool) -> Tensor:
        """``[layers, 2, tokens, kv_heads * head_dim]`` of ``prompts [layers, tokens, width]``, as wide as a backbone's
        weight or, under autocast, its type; without its ``bias`` where a sum is projected part by part."""
        found = []
        for layer, prompt in zip(self._layers, prompts.unbind(0), strict=True):
            found.append(torch.stack([maker.of(prompt, bias=bias) for maker in (layer.key, layer.value)]))
        return torch.stack(found)

    def by_head(self, flat: Tensor) -> Tensor:
        """``[layers, 2, tasks, kv_heads, length, head_dim]`` of ``flat [layers, 2, tasks, length, all heads]``."""
        kv = flat.view(*flat.shape[:-1], self._heads, -1).transpose(3, 4)
        if all(layer.norm is None for layer in self._layers):
            return kv
        normed = [layer.normed(kv[at, 0]) for at, layer in enumerate(self._layers)]
        return torch.stack([torch.stack(normed), kv[:, 1]], dim=1)


def _layer(module: Any, *, heads: int) -> _Layer:
    key, value = (next((_frozen(getattr(module, n)) for n in names if hasattr(module, n)), None) for names in _ROLES)
    makers = (_Maker(key), _Maker(value)) if key is not None and value is not None else _of_fused(module, heads=heads)
    if makers is None:
        raise RequestError(
            f"{type(module).__name__} has no linear for keys and for values that is known here (k_proj, v_proj, k, v, "
            f"{', '.join(_FUSED)}), so no prompt can be read through them. Take a Llama-, Qwen-, GPT-2- or T5-like "
            "backbone."
        )
    if is_shard(makers[0].linear.weight):
        raise RequestError("A prompt is read through weights of layers that are not running. Leave out --shard.")
    norm = getattr(module, "k_norm", None)
    return _Layer(*makers, norm if norm is not None else getattr(module, "k_layernorm", None))


def _of_fused(module: Any, *, heads: int) -> tuple[_Maker, _Maker] | None:
    """Keys and values among the rows of a linear that makes queries too."""
    fused = next((_frozen(getattr(module, name)) for name in _FUSED if hasattr(module, name)), None)
    size = getattr(module, "head_dim", None) or getattr(module, "head_size", None)
    if fused is None or size is None:
        return None
    rows = torch.arange(fused.out_features)
    if type(module).__name__ in _BY_HEAD and not getattr(module, "multi_query", False):
        by_head = rows.view(heads, 3, size)
        return _Maker(fused, by_head[:, 1].flatten()), _Maker(fused, by_head[:, 2].flatten())
    queries = fused.out_features - 2 * heads * size
    if queries <= 0 or queries % size:
        return None
    key, value = torch.split(rows[queries:], heads * size)
    return _Maker(fused, key), _Maker(fused, value)


def _frozen(module: Any) -> nn.Linear | None:
    """The backbone's linear below what methods put around it."""
    while not isinstance(module, nn.Linear):
        module = getattr(module, "base", None) or getattr(module, "base_layer", None)
        if module is None:
            return None
    return module
