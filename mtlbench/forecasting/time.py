"""Forecast of memory, time and disk of a cell, by its structure and by records of earlier cells in the folder."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.record import Record
from mtlbench.api.row_checks import RowCheck
from mtlbench.backbones.backbone import load_tokenizer
from mtlbench.cells.bench import Bench
from mtlbench.data.lm_task import choose_rows
from mtlbench.forecasting.memory import TRAINING_BYTES, ParameterCounts
from mtlbench.planning.mixing import read_mixing
from mtlbench.training.batches import plan_batches, planned_steps
from mtlbench.training.cuts import pass_tokens

FROZEN_PASSES = 2
"""Cost of forward and backward through a frozen backbone, in forward passes: no gradients of weights."""
SAMPLE_BYTES = 120
"""Compressed size of one scored example in ``samples/``."""
STEP_LOG_BYTES = 60_000
CHECKPOINTS = 3
"""Most checkpoints of an unfinished cell that exist at one time."""


@dataclass(frozen=True, kw_only=True)
class MemoryForecast:
    """Peak memory of training in bytes."""

    weights: int
    training: int
    """Trainable parameters with their gradients and AdamW's moments."""
    activations: int
    rest: int
    """Libraries and buffers: from recorded cells, else from this process."""

    @property
    def total(self) -> int:
        return self.weights + self.training + self.activations + self.rest


def forecast_memory(
    cell: Cell,
    counts: ParameterCounts,
    tokens: TokenForecast,
    *,
    bytes_each: int,
    rest: int,
    rows: int | None = None,
    devices: int = 1,
    shard: bool = False,
    device: str = "cpu",
) -> MemoryForecast:
    """Peak memory with micro-batches of ``rows`` examples of the longest length (default: by the protocol), with
    ``bytes_each`` per value. More tokens than a pass holds on this type of ``device`` are computed one after another.

    The result is for one of several ``devices``, which divide the examples and, with ``shard``, the frozen weights; the
    gathered layer is ignored.
    """
    protocol = cell.protocol
    rows = -(-(rows or protocol.micro_batch or protocol.batch_size) // devices)
    size = counts.backbone_size
    saved = size.activations_checkpointed if protocol.checkpointing else size.activations
    if not counts.training:
        saved = 0
    most = pass_tokens(size, device, bytes_each=bytes_each)
    return MemoryForecast(
        weights=counts.weight_bytes(bytes_each) // (devices if shard else 1),
        training=counts.training * TRAINING_BYTES,
        activations=min(rows * tokens.longest, max(most, tokens.longest)) * saved * bytes_each,
        rest=rest,
    )


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Speed of cells on this machine."""

    rate: float
    """Multiply-adds of the backbone per second, over training and scoring."""
    overhead_s: float
    """Other seconds per cell."""
    records: int
    """Number of records it is based on; 0 if it is the measured matrix rate."""


def work_of(counts: ParameterCounts, tokens: TokenForecast) -> float:
    """Multiply-adds of a cell's budget: each training token forward and backward, each scored one forward."""
    return counts.backbone_size.multiplied * (_passes(counts) * tokens.train_tokens + tokens.eval_tokens)


def done_work(counts: ParameterCounts, tokens: TokenForecast, record: Record) -> float:
    """The same for a recorded cell, which may have stopped early."""
    assert record.costs is not None
    return counts.backbone_size.multiplied * (_passes(counts) * record.costs.train_tokens + tokens.eval_tokens)


def _passes(counts: ParameterCounts) -> int:
    if not counts.training:
        return 0
    return FROZEN_PASSES + (counts.training >= counts.backbone)


def throughput_of(records: Iterable[tuple[Record, ParameterCounts, TokenForecast]], *, gflops: float) -> Throughput:
    """The pace of recorded cells; without any, that of the matrix rate measured now."""
    work = busy = 0.0
    overheads: list[float] = []
    for record, counts, tokens in records:
        if record.costs is None:
            continue
        spent = record.costs.train_seconds + record.costs.eval_seconds
        overheads.append(record.costs.total_seconds - spent)
        work += done_work(counts, tokens, record)
        busy += spent
    if not overheads or not busy or not work:
        return Throughput(rate=gflops * 1e9 / 2, overhead_s=0.0, records=0)
    return Throughput(rate=work / busy, overhead_s=median(overheads), records=len(overheads))


def forecast_seconds(counts: ParameterCounts, tokens: TokenForecast, throughput: Throughput) -> float:
    """Time of a cell without early stopping."""
    return work_of(counts, tokens) / throughput.rate + throughput.overhead_s


def forecast_disk(counts: ParameterCounts, tokens: TokenForecast) -> tuple[int, int]:
    """Bytes on disk that a cell leaves, and those that it needs in addition while it runs."""
    permanent = (counts.training - counts.dropped) * 4 + tokens.eval_rows * SAMPLE_BYTES + STEP_LOG_BYTES
    return permanent, counts.training * TRAINING_BYTES * CHECKPOINTS


SAMPLE = 200
"""Training examples per task whose length is measured."""
DRAWN = 64
"""Steps that are drawn to see how many tasks a step holds."""


@dataclass(frozen=True)
class TokenForecast:
    """Steps and tokens of training and scoring, without early stopping."""

    steps: int
    train_tokens: int
    eval_rows: int
    eval_tokens: int
    longest: int
    """Tokens of the longest example in a sample."""
    tasks_per_step: float
    """How many tasks a step holds examples of, in the mean; of the targets where there are sources."""
    largest_share: float
    """The share of a step's examples that are of the task with most of them, in the mean."""
    checks: Mapping[str, RowCheck]
    """What would be truncated of each task, of the sample of training examples and of all that are scored."""


@dataclass(frozen=True)
class _Tokenizer:
    """The attributes of a backbone that :meth:`Bench.prepared` uses."""

    tokenizer: Any
    architecture: str


def token_forecast_of(cell: Cell, *, bench: Bench, architecture: str) -> TokenForecast:
    """Steps of the budget, and tokens by the mean length of a sample of examples.

    Raises:
        RequestError: the data or the tokenizer is unavailable.
    """
    protocol = cell.protocol
    limit = protocol.train_rows if protocol.k_shot else min(protocol.train_rows or SAMPLE, SAMPLE)
    sampled = dataclasses.replace(cell, protocol=dataclasses.replace(protocol, train_rows=limit))
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
    every_task = range(len(counts))
    stages = (
        [(every_task[:sources], protocol), (every_task[sources:], protocol.adaptation())]
        if sources
        else [(every_task, protocol)]
    )
    steps = tokens = 0
    for tasks, budget in stages:
        train_counts = [max(1, round(counts[task] * (1 - budget.held_out))) for task in tasks]
        planned = planned_steps(
            train_counts, epochs=budget.epochs, steps=budget.steps, batch_size=budget.batch_size, mixing=budget.mixing
        )
        weights = read_mixing(budget.mixing).weights(train_counts)
        length = sum(weight * mean[task] for weight, task in zip(weights, tasks, strict=True)) / sum(weights)
        lengths_of_stage = {at: lengths[task] for at, task in enumerate(tasks) if task in lengths}
        steps += planned
        tokens += round(planned * budget.batch_size * length)
    drawn = _drawn_steps(train_counts, lengths_of_stage, budget)
    scored = [choose_rows(len(lm.validation_docs()), protocol.eval_rows) for lm in prepared.lm_tasks.values()]
    probed = sum(len(choose_rows(len(lm.validation_docs()), protocol.eval_rows)) for lm in prepared.probe.values())
    # nothing of a probe task is tokenised here: its rows count as rows of the trained tasks
    of_probe = probed * sum(mean) / len(mean)
    return TokenForecast(
        steps=steps,
        train_tokens=tokens,
        eval_rows=sum(map(len, scored)) + probed,
        eval_tokens=round(sum(len(rows) * mean[task] for task, rows in enumerate(scored)) + of_probe),
        longest=max((max(values) for values in lengths.values()), default=0),
        tasks_per_step=sum(map(len, drawn)) / len(drawn),
        largest_share=sum(max(step.values()) / sum(step.values()) for step in drawn) / len(drawn),
        checks=prepared.checks,
    )


def _drawn_steps(counts: Sequence[int], lengths: Mapping[int, Sequence[int]], protocol: Protocol) -> list[Counter[int]]:
    """How many examples of each task the first steps of a training on so many examples hold."""
    stride = max(counts)
    plan = plan_batches(
        [range(task * stride, task * stride + count) for task, count in enumerate(counts)],
        steps=DRAWN,
        batch_size=protocol.batch_size,
        mixing=protocol.mixing,
        seed=0,
        lengths=_SampledLengths(lengths, stride=stride, tasks=len(counts)),
        by_length=protocol.batching == "by_length",
    )
    return [Counter(row // stride for row in step) for step in plan]


class _SampledLengths(Sequence[int]):
    """Lengths of all examples from those of a sample; ``stride`` numbers for each task. Nothing is stored for each."""

    def __init__(self, lengths: Mapping[int, Sequence[int]], *, stride: int, tasks: int) -> None:
        self._lengths, self._stride, self._tasks = lengths, stride, tasks

    def __len__(self) -> int:
        return self._stride * self._tasks

    def __getitem__(self, row: Any) -> Any:
        sample = self._lengths.get(row // self._stride, (0,))
        return sample[row % self._stride % len(sample)]
