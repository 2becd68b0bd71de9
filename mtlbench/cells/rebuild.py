"""The trained model of a cell, from its record and its saved adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtlbench.api.cell import Cell
from mtlbench.api.method import Method, Setup, SetupTask
from mtlbench.api.record import Record
from mtlbench.api.routing import Routing
from mtlbench.backbones.backbone import load_backbone
from mtlbench.backbones.machine import axis_seed
from mtlbench.backbones.names import weights_digest
from mtlbench.errors import StoreError
from mtlbench.nn.linears import projection_names, shapes_of
from mtlbench.planning.settings import build
from mtlbench.tokens.encode import encode_texts
from mtlbench.training.checkpoints.state import load_adapter, saved_extra, saved_names, shrink


@dataclass(frozen=True)
class Rebuilt:
    """A model in evaluation mode as training left it, before ``Method.finish``."""

    model: nn.Module
    method: Method
    setup: Setup
    tokenizer: Any = None


def setup_of(
    model: nn.Module,
    cell: Cell,
    *,
    architecture: str,
    train_rows: Sequence[int],
    total_steps: int,
    routing: Routing,
    tokenizer: Any = None,
) -> Setup:
    """What a method may know about a cell; ``train_rows`` by task."""
    targets = projection_names(model)
    return Setup(
        tasks=tuple(SetupTask(i, name, train_rows[i]) for i, name in enumerate(cell.tasks)),
        routing=routing,
        architecture=architecture,
        target_modules=targets,
        shapes=shapes_of(model, targets),
        total_steps=total_steps,
        max_length=cell.protocol.max_length,
        seed=axis_seed(cell.seed, "init"),
        sources=len(cell.protocol.source_tasks),
        encode=None if tokenizer is None else lambda text: encode_texts(tokenizer, [text], special=False)[text],
    )


def rebuild(record: Record, adapter: Path, *, model: str | None = None) -> Rebuilt:
    """Load the backbone on the processor, attach the method and read the adapter.

    Args:
        model: Folder of the backbone, if it is not where the record says.

    Raises:
        StoreError: there is no adapter, it does not fit, or the backbone is not the one that was trained.
    """
    cell = record.cell
    extra = saved_extra(adapter)
    dtype = {"torch.bfloat16": torch.bfloat16, "torch.float16": torch.float16}.get(
        record.provenance.get("dtype", ""), torch.float32
    )
    where = model or cell.model
    backbone = load_backbone(
        where,
        dtype=dtype,
        attention=cell.protocol.attention,
        device=torch.device("cpu"),
        quantize=cell.protocol.quantize,
    )
    # Which codes a weight is rounded to may depend on the device that quantised it: there the files decide.
    by_files = cell.protocol.quantize != "none" and bool(cell.weights)
    same = weights_digest(where) == cell.weights if by_files else None
    if not same and backbone.fingerprint != record.provenance.get("backbone_fingerprint"):
        raise StoreError(
            f"The weights of the backbone {where!r} are not the ones this adapter was trained on. "
            "Bring those back, or train the cell again."
        )
    method = build(cell.method, cell.settings)
    setup = setup_of(
        backbone.model,
        cell,
        architecture=backbone.architecture,
        train_rows=extra["train_rows"],
        total_steps=extra["total_steps"],
        routing=Routing(),
        tokenizer=backbone.tokenizer,
    )
    method.attach(backbone.model, setup)
    shrink(backbone.model, saved_names(adapter))
    load_adapter(backbone.model, adapter)
    return Rebuilt(backbone.model.eval(), method, setup, backbone.tokenizer)
