"""Cost of serving many tasks: switching adapters, and batches that mix tasks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.composition import Composite
from mtlbench.measuring.records import MeasuredServing
from mtlbench.measuring.training import MeasuredMethod, forward, timed
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Batch
from mtlbench.training.checkpoints.state import FILE, save_adapter, trainable_state

REPEATS = 5
ROWS_AT_ONCE = 32
"""Rows in a forward pass over a mixed batch."""
HOST_BYTES = 4 * 2**30
"""Host memory for separate adapters; if it is too small, adapters are reused."""
State = dict[str, Tensor]


def measure_serving(subject: MeasuredMethod) -> list[MeasuredServing]:
    """One entry per way of serving and number of tasks, with one row per task. Median seconds.

    ``routed``: one model whose layers route each row by its task. ``unified``: one finished adapter for all tasks.
    ``separate``: an adapter per task, copied from host memory before its row, as it cannot be mixed.
    """
    measured: list[MeasuredServing] = []
    for tasks in subject.row.serving:
        if subject.method.task_routed:
            model, setup = subject.attached(tasks=tasks)
            measured.append(_together(subject, model.eval(), setup.routing, tasks=tasks, way="routed"))
            continue
        model, setup = subject.attached(tasks=1)
        if _switchable(subject, model):
            measured.append(_separate(subject, model.eval(), setup.routing, tasks=tasks))
        subject.method.finish(model)
        measured.append(_together(subject, model.eval(), setup.routing, tasks=tasks, way="unified"))
    return measured


def _together(subject: MeasuredMethod, model: nn.Module, routing: Routing, *, tasks: int, way: str) -> MeasuredServing:
    """One model for all tasks: rows one by one, and in mixed batches."""
    rows = _waiting(subject, tasks)
    singles = [subject.batch([row]) for row in rows]
    batches = [subject.batch(rows[at : at + ROWS_AT_ONCE]) for at in range(0, tasks, ROWS_AT_ONCE)]

    def serve(waiting: list[Batch]) -> None:
        for batch in waiting:
            forward(subject, model, batch, routing)

    return {
        "way": way,
        "tasks": tasks,
        "one_by_one_seconds": _median(subject, partial(serve, singles)),
        "switching_seconds": 0.0,
        "mixed_seconds": _median(subject, partial(serve, batches)),
    }


def _separate(subject: MeasuredMethod, model: nn.Module, routing: Routing, *, tasks: int) -> MeasuredServing:
    """One adapter per task, switched before each row."""
    singles = [subject.batch([TokenRow(0, row.context, row.target)]) for row in _waiting(subject, tasks)]
    held = _adapters(model, tasks)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def switch(task: int) -> None:
        with torch.no_grad():
            for name, value in held[task % len(held)].items():
                parameters[name].copy_(value, non_blocking=True)

    def switch_all() -> None:
        for task in range(tasks):
            switch(task)

    def serve() -> None:
        for task, batch in enumerate(singles):
            switch(task)
            forward(subject, model, batch, routing)

    with tempfile.TemporaryDirectory() as folder:
        path = save_adapter(model, Path(folder), {}).parent / FILE

        def from_disk() -> None:
            with torch.no_grad():
                for name, value in load_file(path).items():
                    parameters[name].copy_(value)

        disk = _median(subject, from_disk)
    total = _median(subject, serve)
    return {
        "way": "separate",
        "tasks": tasks,
        "one_by_one_seconds": total,
        "switching_seconds": _median(subject, switch_all),
        "mixed_seconds": total,  # rows of different adapters cannot share a forward pass
        "disk_switch_seconds": disk,
        "adapters_held": len(held),
    }


def _switchable(subject: MeasuredMethod, model: nn.Module) -> bool:
    """Whether the adapter of one task is a set of weights that can be swapped without ``finish``."""
    composed = isinstance(subject.method, Composite) or subject.method.adapts != "weights"
    return not composed and any(p.requires_grad for p in model.parameters())


def _adapters(model: nn.Module, tasks: int) -> list[State]:
    """Adapter states in separate host memory; one per task, or as many as fit into :data:`HOST_BYTES`."""
    state = trainable_state(model)
    size = sum(value.numel() * value.element_size() for value in state.values())
    count = max(1, min(tasks, HOST_BYTES // max(1, size)))
    pin = next(iter(state.values())).is_cuda
    held = [{name: value.to("cpu", copy=True) for name, value in state.items()} for _ in range(count)]
    return [{name: value.pin_memory() for name, value in one.items()} for one in held] if pin else held


def _waiting(subject: MeasuredMethod, tasks: int) -> list[TokenRow]:
    """One row per task."""
    return [TokenRow(task, row.context, row.target) for task, row in enumerate(subject.rows(tasks))]


def _median(subject: MeasuredMethod, act: Callable[[], None]) -> float:
    return float(np.median(timed(act, subject.device, repeats=REPEATS, warmup=1)))
