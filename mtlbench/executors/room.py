"""Which devices have room for the weights of the cells: others that programs have filled would fail cell after cell."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod

from mtlbench.api.cell import Cell
from mtlbench.api.executor import DevicesPerCell
from mtlbench.backbones.checkpoint import weight_shapes
from mtlbench.backbones.names import files_of
from mtlbench.backbones.quantization import KINDS
from mtlbench.errors import MtlbenchError, RequestError
from mtlbench.executors import slots as leases
from mtlbench.executors.devices import Device
from mtlbench.text import memory

_log = logging.getLogger(__name__)
_BYTES = {"float32": 4}
"""Bytes of a weight by the dtype of a protocol; at least two in all others."""


def with_room(cards: tuple[Device, ...], cells: Sequence[Cell], *, devices: DevicesPerCell) -> tuple[Device, ...]:
    """The devices with free memory for the frozen weights of at least one of ``cells``.

    Where the driver does not say what is free, or where another run of mtlbench holds the device, which ends some time,
    there is room.

    Raises:
        RequestError: there are devices, and none has room.
    """
    if not cards:
        return cards
    kinds = {(c.model, c.protocol.dtype, c.protocol.quantize, devices(c)): c for c in cells}.values()
    sizes = [weight_bytes(cell, devices=devices) for cell in kinds]
    least = devices.workers * min((size for size in sizes if size is not None), default=0)
    fitting = tuple(card for card in cards if (free := _free(card)) is None or free >= least or _leased(card))
    full = [card for card in cards if card not in fitting]
    if not fitting:
        raise RequestError(
            f"The weights of the cells need at least {memory(least)}, and no device has as much free: "
            f"{', '.join(map(_told, full))}. Wait until the programs there have ended, take a smaller --model, or say "
            "--device cpu."
        )
    for card in full:
        _log.warning("device %s is not used: the weights of the cells need at least %s", _told(card), memory(least))
    return fitting


def weight_bytes(cell: Cell, *, devices: DevicesPerCell) -> int | None:
    """The least bytes that the frozen weights of ``cell`` take on each of its devices; ``None`` if unknown, as of a
    backbone on the hub."""
    try:
        files = files_of(cell.model)
        shapes = {} if files is None or files.gguf is not None else weight_shapes(files.folder)
    except (MtlbenchError, OSError):
        return None  # a worker says what is wrong with it
    if not shapes or files is None:
        return None
    stored = sum(path.stat().st_size for path in files.folder.glob("*.safetensors"))  # fewer bits each, if quantised
    quantize = cell.protocol.quantize
    each = _BYTES.get(cell.protocol.dtype, 2) if quantize == "none" else KINDS[quantize].bytes_each
    loaded = int(sum(map(prod, shapes.values())) * each)
    return min(stored, loaded) // (devices(cell) if devices.shard else 1)


def _free(card: Device) -> int | None:
    return None if card.memory is None else card.memory - card.used


def _leased(card: Device) -> bool:
    held = leases.take([card])
    leases.release(held or ())
    return held is None


def _told(card: Device) -> str:
    """A device with its free memory, which is known."""
    return f"{card.id} ({memory(_free(card) or 0)} free of {memory(card.memory or 0)})"
