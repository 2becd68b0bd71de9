"""A static prefix as a standard peft PrefixTuning checkpoint, and the backbone it is for as a transformers folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.backbones.layers import conv1d_weights
from mtlbench.errors import PluginError
from mtlbench.nn.attachments import get_module
from mtlbench.nn.prefixes.slots import PrefixSlots

_NEED_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings whose angles depend on how long the sequence is."""


@torch.no_grad()
def export_prefix(model: nn.Module, kv: Tensor, folder: Path, *, base: Path | str | None = None) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` that ``peft.PeftModel.from_pretrained`` reads.

    peft keeps a prefix in the cache and counts its slots as positions. So keys are rotated by the length of the prefix
    for models with rotary positions, and the values stay. For T5, peft joins what it calls self and cross pairs and
    gives decoder layer l the pair 2l: the checkpoint says twice the number of layers, and the odd pairs are zero.

    Args:
        model: The model that ``kv`` was made for, after :func:`~mtlbench.nn.prefixes.inject.attach_prefix`;
            low-rank parts that depend on the task merged. It runs on one token, without its prefix.
        kv: The prefix ``[layers, 2, kv_heads, length, head_dim]``.
        base: Where the backbone that the checkpoint is for is loaded from, such as a folder of
            :func:`save_merged`; by default where ``model`` came from.

    Raises:
        PluginError: peft cannot express the prefix.
    """
    from peft import PrefixTuningConfig
    from safetensors.torch import save_file

    own: Any = model.config
    slots = get_module(model, PrefixSlots)
    if slots.where != ("dec",):
        raise _inexpressible(f"peft has no prefix for {'+'.join(slots.where)}, only for dec.")
    if kv.dim() != 5:
        raise _inexpressible(f"peft has one prefix for all rows, and this one of shape {tuple(kv.shape)} differs.")
    layers, _, heads, length, size = kv.shape
    if (layers, heads, size) != tuple(slots.shape):
        raise ValueError(f"a prefix of shape {tuple(kv.shape)} does not fit {slots.shape}")
    pairs = kv.detach().float()
    if own.is_encoder_decoder:
        _check_relative(slots)
        pairs = torch.stack([pairs, torch.zeros_like(pairs)], dim=1).flatten(0, 1)
    else:
        angles = _angles(slots, length).to(pairs.device)
        pairs = torch.stack([rotate(pairs[:, 0], angles), pairs[:, 1]], dim=1)
    config = PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM" if own.is_encoder_decoder else "CAUSAL_LM",
        base_model_name_or_path=str(base or own.name_or_path) or None,
        num_virtual_tokens=length,
        num_layers=len(pairs),
        num_attention_heads=heads,
        token_dim=heads * size,
        num_transformer_submodules=2 if own.is_encoder_decoder else 1,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    flat = pairs.permute(3, 0, 1, 2, 4).reshape(length, -1).cpu().contiguous()
    save_file({"prompt_embeddings": flat}, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def save_merged(model: nn.Module, folder: Path) -> None:
    """Write ``model`` for ``transformers.AutoModel...from_pretrained``: low-rank parts merged, its prefix left out.

    Raises:
        PluginError: there is more than the backbone's own weights, such as adapters that were not merged.
    """
    host: Any = model
    with torch.device("meta"):
        stock = type(host)(copy.deepcopy(host.config))
    plain, transposed = set(stock.state_dict()), conv1d_weights(stock)
    state = {name: value for name, value in host.state_dict().items() if not name.startswith("mtlbench_prefix.")}
    other = sorted(plain ^ set(state))
    if other:
        raise PluginError(
            f"{type(model).__name__} holds more than its backbone, or less: {len(other)} names differ, first "
            f"{other[0]!r}. Merge its adapters before saving it."
        )
    state |= {name: state[name].t().contiguous() for name in transposed}
    host.save_pretrained(folder, state_dict=state)


def rotate(keys: Tensor, angles: Tensor) -> Tensor:
    """Keys ``[..., head_dim]`` turned by ``angles [head_dim / 2]``, their halves as coordinates, as Llama does."""
    cos, sin = angles.cos(), angles.sin()
    first, second = keys.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _angles(slots: PrefixSlots, length: int) -> Tensor:
    """What ``length`` positions turn a key by ``[head_dim / 2]``."""
    (place,) = slots.places
    config, rotary = place.stack.config, getattr(place.stack, "rotary_emb", None)
    if getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        raise _inexpressible("layers attend to a window of tokens; in peft the prefix falls out of it, here it stays.")
    kind = str(getattr(rotary, "rope_type", None))
    if any(word in kind for word in _NEED_LENGTH):
        raise _inexpressible(f"rope_type {kind!r} has angles that depend on the length of the sequence.")
    frequencies = getattr(rotary, "inv_freq", None)
    if frequencies is None:
        raise _inexpressible(
            "in peft a prefix moves the positions of all tokens, which can be undone for rotary positions alone."
        )
    angles: Tensor = length * frequencies.float()
    if 2 * angles.numel() != slots.shape.head_dim:
        raise _inexpressible("only a part of each key turns with the position.")
    for layer, (here, there) in enumerate(zip(_first_keys(slots, 0), _first_keys(slots, length), strict=True)):
        if (rotate(here, angles) - there).abs().max() > _rounding(slots) * there.abs().max():
            raise _inexpressible(f"layer {layer} does not turn its keys with the position as Llama does.")
    return angles


def _first_keys(slots: PrefixSlots, position: int) -> list[Tensor]:
    """The keys of a lone token at ``position``, of every layer; nothing else about it depends on the position."""
    from transformers import DynamicCache

    (place,) = slots.places
    device, cache = next(place.stack.parameters()).device, DynamicCache()
    with slots.off():
        place.stack(
            input_ids=torch.ones(1, 1, dtype=torch.long, device=device),
            position_ids=torch.full((1, 1), position, device=device),
            past_key_values=cache,
            use_cache=True,
        )
    return [layer.keys.float() for layer in cache.layers]


def _rounding(slots: PrefixSlots) -> float:
    """How far keys may be off, as a share of the largest: hidden states of 16 bits are rounded in every layer."""
    (place,) = slots.places
    return 1e-4 if next(place.stack.parameters()).dtype == torch.float32 else 5e-2


def _check_relative(slots: PrefixSlots) -> None:
    (place,) = slots.places
    if not hasattr(place.layers[0], "compute_bias"):
        raise _inexpressible("in peft a prefix moves the positions of all tokens, and its decoder's are learned.")
    if slots.bias != "relative":
        raise _inexpressible("in peft the prefix has the relative position bias of tokens before the first: bias=zero.")


def _inexpressible(reason: str) -> PluginError:
    return PluginError(f"This prefix has no standard form: {reason}")
