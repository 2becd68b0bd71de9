"""Parameter counts and activation sizes of a method on a backbone, computed on the meta device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mtlbench.api.cell import Cell
from mtlbench.api.method import Setup
from mtlbench.api.routing import Routing
from mtlbench.backbones.backbone import BackboneSize, backbone_size, empty_backbone
from mtlbench.backbones.quantization import kind_of
from mtlbench.cells.cost import trainable_count
from mtlbench.cells.rebuild import setup_of
from mtlbench.compat import quantizable_linears
from mtlbench.errors import RequestError
from mtlbench.nn.linears import shapes_of
from mtlbench.planning.settings import build
from mtlbench.text import memory

TRAINING_BYTES = 16
"""Bytes per trainable float32 parameter: value, gradient and AdamW's two moments."""


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters."""

    backbone: int
    training: int
    """Trainable at the start."""
    dropped: int
    """Of these, those that an architecture search removes."""
    backbone_size: BackboneSize
    architecture: str
    packed: int = 0
    """Of the backbone, those that quantisation packs."""
    packed_bytes: float = 0.0
    """Bytes of each of these."""
    largest_packed: int = 0
    """Weights of the largest packed linear, which is unpacked to be multiplied by."""

    def weight_bytes(self, bytes_each: int) -> int:
        """Bytes of the frozen weights, those of ``bytes_each`` and packed ones."""
        whole = (self.backbone - self.packed + self.largest_packed) * bytes_each
        return whole + round(self.packed * self.packed_bytes)


def count_parameters(cell: Cell) -> ParameterCounts:
    """Count the parameters that the method of ``cell`` attaches to its backbone, on the meta device.

    Raises:
        RequestError: the method refuses the backbone, or the backbone's configuration is unavailable.
    """
    model, architecture = empty_backbone(cell.model, attention=cell.protocol.attention)
    return counts_on(model, cell, architecture=architecture)


def counts_on(model: nn.Module, cell: Cell, *, architecture: str) -> ParameterCounts:
    """The same on an empty backbone at hand, to which the method stays attached.

    Raises:
        RequestError: the method refuses the backbone.
    """
    size = backbone_size(model)
    kind = kind_of(cell.protocol.quantize, vars(model.config))
    packed = quantizable_linears(model) if kind is not None else frozenset()
    sizes = [rows * columns for rows, columns in shapes_of(model, sorted(packed)).values()]
    method = build(cell.method, cell.settings)
    setup = empty_setup(model, cell, architecture=architecture)
    reason = method.refuse(setup)
    if reason is not None:
        raise RequestError(reason)
    with torch.no_grad():
        method.attach(model, setup)
    searched = (getattr(module, "temporary_parameters", None) for module in model.modules())
    dropped = sum(int(count()) for count in searched if callable(count))
    return ParameterCounts(
        backbone=size.parameters,
        training=trainable_count(model),
        dropped=dropped,
        backbone_size=size,
        architecture=architecture,
        packed=sum(sizes),
        packed_bytes=kind.bytes_each if kind is not None else 0.0,
        largest_packed=max(sizes, default=0),
    )


def empty_setup(model: nn.Module, cell: Cell, *, architecture: str) -> Setup:
    """What a method knows of a cell on an empty backbone."""
    return setup_of(
        model,
        cell,
        architecture=architecture,
        train_rows=[1] * len(cell.tasks),
        total_steps=cell.protocol.steps or 1000,
        routing=Routing(),
    )


def parameter_lines(cells: Iterable[Cell]) -> Iterator[str]:
    """One line per variant: trainable parameters, their share of the backbone, memory, parameters after training."""
    seen: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        seen.setdefault((cell.variant, cell.model), cell)
    for (variant, model), cell in seen.items():
        try:
            counts = count_parameters(cell)
        except RequestError as error:
            yield f"{variant}: refused by {model}: {error}"
            continue
        line = (
            f"{variant}: trains {counts.training:,} parameters, {_share(counts.training, counts.backbone)} of {model}; "
            f"{memory(counts.training * TRAINING_BYTES)} with gradients and optimizer"
        )
        if counts.dropped:
            left = counts.training - counts.dropped
            line += f"; {left:,} after training ({_share(left, counts.backbone)})"
        yield line


def refusal_lines(cells: Iterable[Cell]) -> Iterator[str]:
    """One line per variant that its backbone, which must be a folder here, does not allow; no weight is read."""
    for cell in {(cell.variant, cell.model): cell for cell in cells}.values():
        try:
            count_parameters(cell)
        except RequestError as error:
            yield f"{cell.variant}: will be skipped: {error}"
        except Exception as error:
            what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            yield f"{cell.variant}: cannot be tried without weights ({what}), a worker will tell."


def _share(count: int, total: Any) -> str:
    return f"{100 * count / total:.3g} %"
