"""A frozen backbone that is sharded over the ranks of a cell: the weights of a layer are gathered when it runs.

FSDP2 (``torch.distributed.fsdp.fully_shard``) gathers and frees them in forward and backward; accelerate's wrap policy
finds the layers. ``Accelerator.prepare`` itself is not used: it shards the trainable weights too, keeps tied embeddings
and the head gathered for the whole step, and loads the model on rank 0 only. Here adapters are whole on every rank,
all cells share the same shards, and every rank reads its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.backbones.backbone import Backbone, fingerprint, load_model
from mtlbench.backbones.checksum import Checksum
from mtlbench.compat import buffers_of, parameters_of
from mtlbench.distributed.ranks import Ranks
from mtlbench.distributed.shards_model import Piece, cuttable, sharded, units_of
from mtlbench.errors import RequestError


class Sharding:
    """The ranks that share backbones; all construct one at the same time.

    Raises:
        RequestError: the installed torch is too old.
    """

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule

        if not all(hasattr(FSDPModule, name) for name in ("set_custom_all_gather", "reset_iter_state")):
            raise RequestError(
                f"--shard needs a newer torch than {torch.__version__}: its FSDP cannot recover from a failed step. "
                "Install torch 2.13 or later, or omit --shard."
            )
        self.ranks, self.device = ranks, device
        self.mesh = init_device_mesh(device.type, (ranks.size,))


@dataclass(frozen=True)
class ShardedBackbone(Backbone):
    """A backbone whose ``model`` has no weights; this rank's shards are ``pieces``, by parameter name."""

    pieces: Mapping[str, Piece]
    sharding: Sharding

    def __post_init__(self) -> None:
        object.__setattr__(self, "checksum", _CommonChecksum(_holder(self), self.sharding.ranks))

    def fresh(self) -> nn.Module:
        """A new model over the same pieces, gathered layer by layer when it runs."""
        return sharded(super().fresh(), self.pieces, ranks=self.sharding.ranks, mesh=self.sharding.mesh)


class _CommonChecksum(Checksum):
    """Checksum over the pieces of all ranks; all call it together."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        super().__init__(model)
        self._ranks = ranks

    def holds(self) -> bool:
        return not self._ranks.any(not super().holds())


def load_sharded(name: str, *, dtype: torch.dtype, attention: str, sharding: Sharding) -> ShardedBackbone:
    """The backbone ``name``; no device ever holds more of it than its pieces and one tensor.

    Files with weights in ``dtype`` are memory-mapped; others are converted to a copy in host memory of each rank
    while loading.

    Raises:
        RequestError: as :func:`~mtlbench.backbones.backbone.load_backbone`, or its layers are unknown.
    """
    model, tokenizer, architecture = load_model(name, dtype=dtype, attention=attention, device=torch.device("cpu"))
    return cut(model, tokenizer, name=name, architecture=architecture, sharding=sharding)


def cut(model: nn.Module, tokenizer: Any, *, name: str, architecture: str, sharding: Sharding) -> ShardedBackbone:
    """Shard a frozen ``model`` on the CPU, which loses its weights; all ranks must pass the same one.

    Raises:
        RequestError: its layers are unknown.
    """
    ranks, device = sharding.ranks, sharding.device
    sharded_ids = cuttable(units_of(model))
    pieces: dict[str, Piece] = {}
    empty: dict[int, nn.Parameter] = {}
    for key, p in model.named_parameters():
        pieces[key] = _piece(p, ranks, device, cut=id(p) in sharded_ids)
        empty[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    checksum = ranks.broadcast_object(fingerprint(model) if ranks.first else None)
    for module in model.modules():
        for key, parameter in parameters_of(module).items():
            if parameter is not None:
                parameters_of(module)[key] = empty[id(parameter)]
        for key, buffer in buffers_of(module).items():
            if buffer is not None:
                buffers_of(module)[key] = buffer.to(device, copy=True)
    return ShardedBackbone(
        name=name,
        model=model,
        tokenizer=tokenizer,
        architecture=architecture,
        parameters=sum(p.numel() for p in model.parameters()),
        fingerprint=checksum,
        pieces=pieces,
        sharding=sharding,
    )


def _piece(p: Tensor, ranks: Ranks, device: torch.device, *, cut: bool) -> Piece:
    """This rank's piece. Vectors stay whole, as do tensors that cannot be cut into equal shards."""
    dims = range(p.dim()) if cut and p.dim() > 1 else ()
    dim = next((dim for dim in dims if p.shape[dim] % ranks.size == 0), None)
    local = p.detach()
    if dim is not None:
        length = p.shape[dim] // ranks.size
        local = local.narrow(dim, ranks.rank * length, length)
    return Piece(local.to(device, copy=True).contiguous(), p.shape, dim)


def _holder(backbone: ShardedBackbone) -> nn.Module:
    """A module with the tensors that must not change."""
    held = nn.Module()
    tensors = [*((name, piece.tensor) for name, piece in backbone.pieces.items()), *backbone.model.named_buffers()]
    for name, tensor in tensors:
        held.register_buffer(name.replace(".", "/"), tensor)
    return held
