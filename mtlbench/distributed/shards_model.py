"""A model of which this process has pieces, made to gather its layers with FSDP2 when they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtlbench.distributed.ranks import Ranks
from mtlbench.distributed.shards_fit import ShardedWeight
from mtlbench.errors import RequestError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Piece:
    """What this process keeps of a tensor."""

    tensor: Tensor
    shape: torch.Size
    """Of the whole tensor."""
    dim: int | None
    """Along which it is cut in equal parts; ``None`` where every process keeps all of it."""


def units_of(model: nn.Module) -> list[nn.Module]:
    """What is gathered at once: a layer, an embedding, the head; outer ones before inner ones.

    Raises:
        RequestError: the model does not say what its layers are.
    """
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    present = {type(module).__name__ for module in model.modules()}
    names = sorted(present & set(getattr(model, "_no_split_modules", None) or ()))
    if not names:
        raise RequestError(
            f"{type(model).__name__} does not say what its layers are (_no_split_modules), so it cannot be sharded. "
            "Leave --shard out."
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
    """Identities of the parameters that may be cut. A table inside a layer, of position biases, is small and read from
    outside the layer too."""
    own = {id(p) for unit in units for p in unit.parameters()}
    tables = [m for unit in units for m in unit.modules() if isinstance(m, nn.Embedding) and m is not unit]
    return own - {id(p) for table in tables for p in table.parameters()}


def sharded(model: nn.Module, pieces: Mapping[str, Piece], *, ranks: Ranks, mesh: DeviceMesh) -> nn.Module:
    """``model``, which has no weights, with those of ``pieces``: gathered unit by unit when it runs."""
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
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = names[id(parameter)]
            if name in whole:
                module._parameters[attribute] = whole[name]
                continue
            # Tied weights are one piece, gathered for each place on its own: frozen, they cannot drift apart.
            own = nn.Parameter(torch.empty_like(parameter), requires_grad=False)
            module._parameters[attribute] = own
            dims[id(own)] = pieces[name].dim
            cut.append((module, attribute, name))

    def placed(parameter: nn.Parameter) -> Any:
        dim = dims[id(parameter)]
        assert dim is not None
        return Shard(dim)

    shard: Any = fully_shard
    given = {"mesh": mesh, "reshard_after_forward": True, "ignored_params": set(whole.values())}
    units = [unit for unit in units_of(model) if any(id(p) in dims for p in unit.parameters())]
    for number, unit in reversed(list(enumerate(units))):
        shard(unit, shard_placement_fn=placed, **given)
        made: Any = unit
        made.set_custom_all_gather(AgreedGather(ranks, number))
    shard(model, **given)
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
        module._parameters[attribute] = held[name]
    # An encoder runs before the model does: what belongs to the whole must be known by then.
    shard.state(model)._lazy_init()
    host: Any = model
    host._mtlbench_pieces = tuple(
        ShardedWeight(module, attribute, held[name], held[name].untyped_storage()) for module, attribute, name in cut
    )
    return model
