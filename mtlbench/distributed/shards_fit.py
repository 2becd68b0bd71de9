"""What holds of a model whose backbone is sharded, and which methods can be attached to it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlbench.backbones.machine import is_out_of_memory
from mtlbench.errors import MtlbenchError

_READS = "it computes with weights of the backbone when it is attached, of which each process has only a part"


class ShardedWeight(NamedTuple):
    """Where a model has a piece."""

    module: nn.Module
    name: str
    parameter: nn.Parameter
    storage: torch.UntypedStorage


def shards_of(model: nn.Module) -> tuple[ShardedWeight, ...]:
    found: tuple[ShardedWeight, ...] = getattr(model, "_mtlbench_pieces", ())
    return found


def unfit(model: nn.Module) -> str | None:
    """Why a method cannot have attached itself to a sharded model as it did; ``None`` when it can."""
    places = shards_of(model)
    known = {id(place.parameter) for place in places}
    alive = {id(module) for module in model.modules()}
    now = [place.module._parameters.get(place.name) for place in places]
    if any(parameter is not None and parameter.requires_grad for parameter in now):
        return "it trains weights of the backbone, of which each process has only a frozen part"
    for place, parameter in zip(places, now, strict=True):
        same = parameter is place.parameter and parameter.untyped_storage()._cdata == place.storage._cdata
        if not same or id(place.module) not in alive:
            return "it replaces weights of the backbone, of which each process has only a part"
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if any(is_shard(tensor) and id(tensor) not in known for _, tensor in tensors):
        return _READS
    return None


def unfit_error(error: Exception) -> str | None:
    """The same, of what attaching raised; ``None`` when that has nothing to do with parts."""
    if isinstance(error, MtlbenchError) or is_out_of_memory(error):
        return None
    return f"{_READS} ({type(error).__name__}: {str(error).partition(chr(10))[0]})"


def is_shard(tensor: Tensor) -> bool:
    """Whether ``tensor`` is one process's part of a larger one, at a moment when it is not gathered."""
    return hasattr(tensor, "device_mesh")


def is_sharded(model: nn.Module) -> bool:
    """Whether layers of ``model`` are gathered when they run."""
    return bool(shards_of(model))


def scoring(model: nn.Module) -> AbstractContextManager[Any]:
    """No gradients inside. Weights that were first gathered in inference mode could not be trained through."""
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()
