"""Memory, time and disk of a cell before it runs, by its structure and by what earlier cells of the folder needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.backbones.backbone import load_tokenizer
from mtlbench.cells.bench import Bench
from mtlbench.data.lm_task import choose_rows
from mtlbench.forecasting.memory import TRAINING_BYTES, Counts
from mtlbench.planning.mixing import read_mixing
from mtlbench.training.batches import planned_steps

FROZEN_PASSES = 2
"""Forward and backward of a frozen backbone, in forwards: gradients of its inputs only, none of its weights."""
SAMPLE_BYTES = 120
"""Of one scored row in ``samples/``, compressed."""
STEP_LOG_BYTES = 60_000
CHECKPOINTS = 3
"""Most checkpoints of an unfinished cell at one time."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the peak of training."""

    weights: int
    training: int
    """Trainable parameters with their gradients and AdamW's moments."""
    activations: int
    rest: int
    """Libraries and buffers: measured on recorded cells, else on this process."""

    @property
    def total(self) -> int:
        return self.weights + self.training + self.activations + self.rest


def memory_of(
    cell: Cell,
    counts: Counts,
    load: Workload,
    *,
    bytes_each: int,
    rest: int,
    rows: int | None = None,
    devices: int = 1,
    shard: bool = False,
) -> Memory:
    """The peak of a pass over ``rows`` of the longest rows, as the protocol says by default, in ``bytes_each``.

    Of one of several ``devices``, which share the rows, and with ``shard`` the frozen weights too; the layer that is
    gathered to run is left out.
    """
    protocol = cell.protocol
    rows = -(-(rows or protocol.micro_batch or protocol.batch_size) // devices)
    kept = counts.backbone_size.kept_checkpointed if protocol.checkpointing else counts.backbone_size.kept
    if not counts.training:
        kept = 0
    return Memory(
        weights=counts.backbone * bytes_each // (devices if shard else 1),
        training=counts.training * TRAINING_BYTES,
        activations=rows * load.longest * kept * bytes_each,
        rest=rest,
    )


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast cells run here."""

    rate: float
    """Multiply-adds of the backbone per second, over training and scoring."""
    overhead_s: float
    """Seconds of a cell that are neither."""
    records: int
    """Recorded cells it was measured on; 0 for a measured matrix rate."""


def work_of(counts: Counts, load: Workload) -> float:
    """Multiply-adds of a cell's budget: each training token forward and backward, each scored one forward."""
    return counts.backbone_size.multiplied * (_passes(counts) * load.train_tokens + load.eval_tokens)


def done_work(counts: Counts, load: Workload, record: Record) -> float:
    """The same for what a recorded cell did, which may have stopped early."""
    assert record.costs is not None
    return counts.backbone_size.multiplied * (_passes(counts) * record.costs.train_tokens + load.eval_tokens)


def _passes(counts: Counts) -> int:
    if not counts.training:
        return 0
    return FROZEN_PASSES + (counts.training >= counts.backbone)


def pace_of(found: Iterable[tuple[Record, Counts, Workload]], *, gflops: float) -> Pace:
    """The pace of recorded cells; without any, that of the matrix rate measured now."""
    work = busy = 0.0
    overheads: list[float] = []
    for record, counts, load in found:
        if record.costs is None:
            continue
        spent = record.costs.train_seconds + record.costs.eval_seconds
        overheads.append(record.costs.total_seconds - spent)
        work += done_work(counts, load, record)
        busy += spent
    if not overheads or not busy or not work:
        return Pace(rate=gflops * 1e9 / 2, overhead_s=0.0, records=0)
    return Pace(rate=work / busy, overhead_s=median(overheads), records=len(overheads))


def seconds_of(counts: Counts, load: Workload, pace: Pace) -> float:
    """Time of a cell whose budget is used up."""
    return work_of(counts, load) / pace.rate + pace.overhead_s


def disk_of(counts: Counts, load: Workload) -> tuple[int, int]:
    """Bytes that a cell leaves, and those that it needs besides while it runs."""
    kept = (counts.training - counts.dropped) * 4 + load.eval_rows * SAMPLE_BYTES + STEP_LOG_BYTES
    return kept, counts.training * TRAINING_BYTES * CHECKPOINTS


SAMPLE = 200
"""Training rows of each task whose length is measured."""


@dataclass(frozen=True)
class Workload:
    """What training and scoring go through. The whole budget: a cell that stops early needs less."""

    steps: int
    train_tokens: int
    eval_rows: int
    eval_tokens: int
    longest: int
    """Tokens of the longest row, as measured on a sample."""


@dataclass(frozen=True)
class _Tokenizer:
    """What :meth:`Bench.prepared` asks of a backbone."""

    tokenizer: Any
    architecture: str


def workload_of(cell: Cell, *, bench: Bench, architecture: str) -> Workload:
    """The steps of the budget, and the tokens of its rows by the mean length of a sample.

    Raises:
        RequestError: the rows or the tokenizer cannot be had.
    """
    protocol = cell.protocol
    few = protocol.train_rows if protocol.k_shot else min(protocol.train_rows or SAMPLE, SAMPLE)
    sampled = dataclasses.replace(cell, protocol=dataclasses.replace(protocol, train_rows=few))
    shell: Any = _Tokenizer(load_tokenizer(cell.model), architecture)
    prepared = bench.prepared(sampled, shell)
    lengths: dict[int, list[int]] = {}
    for row in prepared.rows:
        lengths.setdefault(row.task, []).append(row.length)
    counts = [
        len(lengths.get(task, ())) if protocol.k_shot else min(len(lm.training_docs()), protocol.train_rows or 10**12)
        for task, lm in enumerate(prepared.lm_tasks.values())
    ]
    mean = [sum(lengths[task]) / len(lengths[task]) if task in lengths else 0.0 for task in range(len(counts))]
    sources = len(protocol.source_tasks)
    everyone = range(len(counts))
    parts = (
        [(everyone[:sources], protocol), (everyone[sources:], protocol.adaptation())]
        if sources
        else [(everyone, protocol)]
    )
    steps = tokens = 0
    for tasks, budget in parts:
        kept = [max(1, round(counts[task] * (1 - budget.held_out))) for task in tasks]
        planned = planned_steps(
            kept, epochs=budget.epochs, steps=budget.steps, batch_size=budget.batch_size, mixing=budget.mixing
        )
        weights = read_mixing(budget.mixing).weights(kept)
        length = sum(weight * mean[task] for weight, task in zip(weights, tasks, strict=True)) / sum(weights)
        steps += planned
        tokens += round(planned * budget.batch_size * length)
    scored = [choose_rows(len(lm.validation_docs()), protocol.eval_rows) for lm in prepared.lm_tasks.values()]
    return Workload(
        steps=steps,
        train_tokens=tokens,
        eval_rows=sum(map(len, scored)),
        eval_tokens=round(sum(len(rows) * mean[task] for task, rows in enumerate(scored))),
        longest=max((max(found) for found in lengths.values()), default=0),
    )
