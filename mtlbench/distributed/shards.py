"""A frozen backbone of which every process of a cell keeps a part: a layer's weights are gathered when it is computed.

FSDP2 (``torch.distributed.fsdp.fully_shard``) gathers and frees, for forward and backward; accelerate's policy says
which modules are layers. ``Accelerator.prepare`` itself is not used: it shards a model for good with all that trains
in it, keeps tied embeddings and the head gathered for the whole step, and loads on the first process what it deals out.
Here adapters stay whole on every process, cells share one set of pieces, and every process reads its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.backbones.backbone import Backbone, fingerprint, load_model
from mtlbench.backbones.checksum import Checksum
from mtlbench.distributed.ranks import Ranks
from mtlbench.distributed.shards_model import Piece, cuttable, sharded, units_of
from mtlbench.errors import RequestError


class Sharding:
    """The processes that share backbones; all make one, at the same time.

    Raises:
        RequestError: the installed torch is too old.
    """

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule

        if not all(hasattr(FSDPModule, name) for name in ("set_custom_all_gather", "reset_iter_state")):
            raise RequestError(
                f"--shard needs a newer torch than {torch.__version__}: its FSDP cannot go on after a failed step. "
                "Install torch 2.13 or later, or leave --shard out."
            )
        self.ranks, self.device = ranks, device
        self.mesh = init_device_mesh(device.type, (ranks.size,))


@dataclass(frozen=True)
class ShardedBackbone(Backbone):
    """A backbone whose ``model`` has no weights; those of this process are ``pieces``, by name."""

    pieces: Mapping[str, Piece]
    sharding: Sharding

    def __post_init__(self) -> None:
        object.__setattr__(self, "checksum", _CommonChecksum(_holder(self), self.sharding.ranks))

    def fresh(self) -> nn.Module:
        """A copy of the structure over the same pieces, gathered layer by layer when it runs."""
        return sharded(super().fresh(), self.pieces, ranks=self.sharding.ranks, mesh=self.sharding.mesh)


class _CommonChecksum(Checksum):
    """Of the pieces of all processes. All ask together."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        super().__init__(model)
        self._ranks = ranks

    def holds(self) -> bool:
        return not self._ranks.any(not super().holds())


def load_sharded(name: str, *, dtype: torch.dtype, attention: str, sharding: Sharding) -> ShardedBackbone:
    """The backbone ``name``; no device ever holds more of it than its pieces and one tensor.

    Files with weights in ``dtype`` are only mapped; of others each process has a converted copy in the host's memory
    while it loads.

    Raises:
        RequestError: as :func:`~mtlbench.backbones.backbone.load_backbone`, or when its layers are not known.
    """
    model, tokenizer, architecture = load_model(name, dtype=dtype, attention=attention, device=torch.device("cpu"))
    return cut(model, tokenizer, name=name, architecture=architecture, sharding=sharding)


def cut(model: nn.Module, tokenizer: Any, *, name: str, architecture: str, sharding: Sharding) -> ShardedBackbone:
    """The backbone of a frozen ``model`` on the processor, which loses its weights; all processes have the same one.

    Raises:
        RequestError: its layers are not known.
    """
    ranks, device = sharding.ranks, sharding.device
    inside = cuttable(units_of(model))
    pieces: dict[str, Piece] = {}
    empty: dict[int, nn.Parameter] = {}
    for key, p in model.named_parameters():
        pieces[key] = _piece(p, ranks, device, cut=id(p) in inside)
        empty[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    found = ranks.broadcast_object(fingerprint(model) if ranks.first else None)
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = empty[id(parameter)]
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device, copy=True)
    return ShardedBackbone(
        name=name,
        model=model,
        tokenizer=tokenizer,
        architecture=architecture,
        parameters=sum(p.numel() for p in model.parameters()),
        fingerprint=found,
        pieces=pieces,
        sharding=sharding,
    )


def _piece(p: Tensor, ranks: Ranks, device: torch.device, *, cut: bool) -> Piece:
    """Vectors stay whole, and so does what cannot be cut in equal parts."""
    dims = range(p.dim()) if cut and p.dim() > 1 else ()
    dim = next((dim for dim in dims if p.shape[dim] % ranks.size == 0), None)
    own = p.detach()
    if dim is not None:
        length = p.shape[dim] // ranks.size
        own = own.narrow(dim, ranks.rank * length, length)
    return Piece(own.to(device, copy=True).contiguous(), p.shape, dim)


def _holder(backbone: ShardedBackbone) -> nn.Module:
    """A module with what must not be written to."""
    held = nn.Module()
    tensors = [*((name, piece.tensor) for name, piece in backbone.pieces.items()), *backbone.model.named_buffers()]
    for name, tensor in tensors:
        held.register_buffer(name.replace(".", "/"), tensor)
    return held
