"""Scores of all rows of a table on the same resamples of the examples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from mtlbench.api.record import Record
from mtlbench.api.study import Row, TaskAnswers
from mtlbench.statistics.answers import Numbers
from mtlbench.statistics.estimate import Measured
from mtlbench.statistics.metrics import Measure, Sums, finish, measures

_AT_ONCE = 4_000_000
"""Weights held in memory at once."""
Held = Mapping[int, Mapping[str, TaskAnswers]]
"""Identity of a record to its answers by task; making its key takes longer."""


def scores_on_draws(
    task: str, rows: Sequence[Row], *, answers: Held, draws: int
) -> tuple[dict[str, Measured], str | None]:
    """Row label to scores on ``task`` in percent, over the seeds that have it, and why there are no draws, if so.

    ``draws`` 0 gives the scores alone.
    """
    records = {row.label: [r for r in row.records if r.status == "ok" and task in r.scores] for row in rows}
    records = {label: own for label, own in records.items() if own}
    every = [record for own in records.values() for record in own]
    found, reason = _draws(task, every, answers=answers, draws=draws) if draws else (None, None)
    scored, at = {}, 0
    for label, own in records.items():
        scored[label] = Measured(
            seeds=tuple(record.cell.seed for record in own),
            values=np.array([record.scores[task].score for record in own]),
            draws=None if found is None else found[:, at : at + len(own)],
            examples=None if found is None else answers[id(own[0])][task].count,
        )
        at += len(own)
    return scored, reason


def _draws(task: str, records: Sequence[Record], *, answers: Held, draws: int) -> tuple[Numbers | None, str | None]:
    """``[draws, records]``, or why not."""
    held = [answers[id(record)][task] for record in records if task in answers.get(id(record), {})]
    if len(held) < len(records):
        return None, "not every cell left its predictions"
    if len({own.documents for own in held}) > 1:
        return None, "the cells answered different examples"
    made = measures([record.scores[task] for record in records], held)
    if made is None:
        return None, "the stored predictions do not give the recorded scores"
    units = made[0][0].units
    if units < 2:
        return None, "there are fewer than two examples"
    scores = [_metric(metric, weights(task, units, draws)) for metric in made]
    return 100 * np.mean(scores, axis=0), None


def weights(task: str, units: int, draws: int) -> Iterator[Numbers]:
    """How often each draw holds each unit: ``[some draws, units]`` at a time, never all held together.

    Every task has its own, the same in every study.
    """
    seed = int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "big")
    generator = np.random.default_rng(seed)
    most = max(1, _AT_ONCE // units)
    for done in range(0, draws, most):
        size = min(most, draws - done)
        picked = generator.integers(0, units, (size, units)) + np.arange(size)[:, None] * units
        yield np.bincount(picked.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)


def _metric(found: Sequence[Measure], parts: Iterable[Numbers]) -> Numbers:
    """One metric of all cells ``[draws, cells]``; cells whose metric is of one kind share a matrix product."""
    sums = [measure for measure in found if isinstance(measure, Sums)]
    if len(sums) < len(found) or len({(own.kind, own.features.shape) for own in sums}) > 1:
        return np.concatenate([np.stack([own.of(part) for own in found], 1) for part in parts])
    together = np.concatenate([own.features for own in sums], axis=1)
    width = sums[0].features.shape[1]
    return np.concatenate(
        [finish(sums[0].kind, (part @ together).reshape(len(part), len(sums), width)) for part in parts]
    )
