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
AnswersOfRecords = Mapping[int, Mapping[str, TaskAnswers]]
"""``id`` of a record to its answers by task; computing the record's key would be slower."""


def scores_on_draws(
    task: str, rows: Sequence[Row], *, answers: AnswersOfRecords, draws: int
) -> tuple[dict[str, Measured], str | None]:
    """Row label to scores on ``task`` in percent, over the seeds that have it, and why there are no draws, if so.

    ``draws`` 0 gives only the scores.
    """
    records = {row.label: [r for r in row.records if r.status == "ok" and task in r.scores] for row in rows}
    records = {label: of_row for label, of_row in records.items() if of_row}
    every = [record for of_row in records.values() for record in of_row]
    drawn, reason = _draws(task, every, answers=answers, draws=draws) if draws else (None, None)
    scored, at = {}, 0
    for label, of_row in records.items():
        scored[label] = Measured(
            seeds=tuple(record.cell.seed for record in of_row),
            values=np.array([record.scores[task].score for record in of_row]),
            draws=None if drawn is None else drawn[:, at : at + len(of_row)],
            examples=None if drawn is None else answers[id(of_row[0])][task].count,
        )
        at += len(of_row)
    return scored, reason


def _draws(
    task: str, records: Sequence[Record], *, answers: AnswersOfRecords, draws: int
) -> tuple[Numbers | None, str | None]:
    """``[draws, records]``, or why not."""
    stored = [answers[id(record)][task] for record in records if task in answers.get(id(record), {})]
    if len(stored) < len(records):
        return None, "not every cell has stored predictions"
    if len({one.documents for one in stored}) > 1:
        return None, "the cells answered different examples"
    made = measures([record.scores[task] for record in records], stored)
    if made is None:
        return None, "the stored predictions do not reproduce the recorded scores"
    units = made[0][0].units
    if units < 2:
        return None, "there are fewer than two examples"
    scores = [_metric(metric, weights(task, units, draws)) for metric in made]
    return 100 * np.mean(scores, axis=0), None


def weights(task: str, units: int, draws: int) -> Iterator[Numbers]:
    """How often each draw contains each unit, in chunks ``[some draws, units]`` to limit memory.

    The seed is the task's name, so the draws of a task are the same in every study.
    """
    seed = int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "big")
    generator = np.random.default_rng(seed)
    most = max(1, _AT_ONCE // units)
    for done in range(0, draws, most):
        size = min(most, draws - done)
        picked = generator.integers(0, units, (size, units)) + np.arange(size)[:, None] * units
        yield np.bincount(picked.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)


def _metric(cells: Sequence[Measure], chunks: Iterable[Numbers]) -> Numbers:
    """One metric of all cells ``[draws, cells]``; one matrix product for all cells if their metrics are of one kind."""
    sums = [measure for measure in cells if isinstance(measure, Sums)]
    if len(sums) < len(cells) or len({(one.kind, one.features.shape) for one in sums}) > 1:
        return np.concatenate([np.stack([one.of(chunk) for one in cells], 1) for chunk in chunks])
    together = np.concatenate([one.features for one in sums], axis=1)
    width = sums[0].features.shape[1]
    return np.concatenate(
        [finish(sums[0].kind, (chunk @ together).reshape(len(chunk), len(sums), width)) for chunk in chunks]
    )
