"""How much a cell has to compute, from its data: steps, rows and tokens, without its backbone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mtlbench.api.cell import Cell
from mtlbench.data.lm_task import choose_rows
from mtlbench.engine.backbone import load_tokenizer
from mtlbench.engine.batches import planned_steps
from mtlbench.engine.bench import Bench
from mtlbench.mixing import read_mixing

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
