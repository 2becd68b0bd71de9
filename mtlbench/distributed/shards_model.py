"""A model over this rank's shards, whose layers FSDP2 gathers when they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtlbench.compat import begin_sharding, layer_classes, parameters_of
from mtlbench.distributed.ranks import Ranks
from mtlbench.distributed.shards_fit import ShardedWeight
from mtlbench.errors import RequestError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Piece:
    """This rank's shard of a tensor, or the whole tensor."""

    tensor: Tensor
    shape: torch.Size
    """Shape of the whole tensor."""
    dim: int | None
    """Dimension along which it is sharded; ``None`` where every rank has the whole tensor."""


def units_of(model: nn.Module) -> list[nn.Module]:
    """Modules that are gathered as a unit: a layer, an embedding, the head; outer ones before inner ones.

    Raises:
        RequestError: the model does not declare its layers.
    """
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    present = {type(module).__name__ for module in model.modules()}
    names = sorted(present & layer_classes(model))
    if not names:
        raise RequestError(
            f"{type(model).__name__} does not declare its layers (_no_split_modules), so it cannot be sharded. "
            "Omit --shard."
        )
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=names
    )
    is_layer = fsdp2_prepare_auto_wrap_policy(plugin, model)
    layers = [module for module in model.modules() if is_layer(module)]
    inner = {id(module) for layer in layers for module in layer.modules()}
    head = model.get_output_embeddings()  # type: ignore[operator]
    tables = [m for m in model.modules() if (isinstance(m, nn.Embedding) or m is head) and id(m) not in inner]
    return [*layers, *tables]


def cuttable(units: Iterable[nn.Module]) -> set[int]:
    """``id`` of the parameters that may be sharded. An embedding inside a layer (position biases) stays whole: it is
    small, and also read from outside the layer."""
    candidates = {id(p) for unit in units for p in unit.parameters()}
    tables = [m for unit in units for m in unit.modules() if isinstance(m, nn.Embedding) and m is not unit]
    return candidates - {id(p) for table in tables for p in table.parameters()}


def sharded(model: nn.Module, pieces: Mapping[str, Piece], *, ranks: Ranks, mesh: DeviceMesh) -> nn.Module:
    """``model``, which has no weights, with the weights of ``pieces``: gathered unit by unit when it runs."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Shard

    from mtlbench.distributed.shards_gate import AgreedGather

    names = {id(p): name for name, p in model.named_parameters()}
    whole = {
        name: nn.Parameter(piece.tensor, requires_grad=False) for name, piece in pieces.items() if piece.dim is None
    }
    cut: list[tuple[nn.Module, str, str]] = []
    dims: dict[int, int | None] = {}
    for module in model.modules():
        for attribute, parameter in parameters_of(module).items():
            if parameter is None:
                continue
            name = names[id(parameter)]
            if name in whole:
                parameters_of(module)[attribute] = whole[name]
                continue
            # Tied weights share a piece but are gathered separately: as they are frozen, they stay equal.
            placeholder = nn.Parameter(torch.empty_like(parameter), requires_grad=False)
            parameters_of(module)[attribute] = placeholder
            dims[id(placeholder)] = pieces[name].dim
            cut.append((module, attribute, name))

    def placement(parameter: nn.Parameter) -> Any:
        dim = dims[id(parameter)]
        assert dim is not None
        return Shard(dim)

    shard: Any = fully_shard
    options = {"mesh": mesh, "reshard_after_forward": True, "ignored_params": set(whole.values())}
    units = [unit for unit in units_of(model) if any(id(p) in dims for p in unit.parameters())]
    for number, unit in reversed(list(enumerate(units))):
        shard(unit, shard_placement_fn=placement, **options)
        fsdp_unit: Any = unit
        fsdp_unit.set_custom_all_gather(AgreedGather(ranks, number))
    shard(model, **options)
    held: dict[str, nn.Parameter] = {}
    for module, attribute, name in cut:
        piece = pieces[name]
        if name not in held:
            assert piece.dim is not None
            local = DTensor.from_local(
                piece.tensor,
                mesh,
                [Shard(piece.dim)],
                run_check=False,
                shape=piece.shape,
                stride=torch.empty(piece.shape, device="meta").stride(),
            )
            held[name] = nn.Parameter(local, requires_grad=False)
        parameters_of(module)[attribute] = held[name]
    # An encoder may run before the model itself does, so FSDP must initialise the root now.
    begin_sharding(model)
    host: Any = model
    host._mtlbench_pieces = tuple(
        ShardedWeight(module, attribute, held[name], held[name].untyped_storage()) for module, attribute, name in cut
    )
    return model
