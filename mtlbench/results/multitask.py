"""Rows compared with a reference, task by task: gains and losses of joint training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mtlbench.api.study import Comparison, Row, ScoreDifference, spread

REFERENCES = ("lora_st", "lora")
"""Variants used as the reference: the first that has scores; without one, the table's first row."""


def reference_row(rows: Sequence[Row], label: str | None = None) -> Row | None:
    """The row with this label, or else of the method with this name; without a name, the default by
    :data:`REFERENCES`.

    Of several rows of one method, the first of: tuned, with default settings, as the rows come.
    """
    if label is not None:
        return next((row for row in rows if row.label == label), None) or _of_method(rows, label)
    named = filter(None, (_of_method(rows, name) for name in REFERENCES))
    return next(named, rows[0] if rows else None)


def _of_method(rows: Sequence[Row], name: str) -> Row | None:
    of_method = [row for row in rows if name in (method_of(row), row.variant)]
    return min(of_method, key=lambda row: (row.tuned is None, row.variant != name), default=None)


def method_of(row: Row) -> str:
    """Name of a row's method, without settings."""
    cells = [*(record.cell for record in row.records), *row.missing]
    return cells[0].method


def with_ranks(rows: Sequence[Row], *, tasks: Sequence[str]) -> list[Row]:
    """The rows with their mean ranks over tasks, where at least two have scores of every task."""
    whole = [row for row in rows if all(_is_number(row, task) for task in tasks)]
    if len(whole) < 2:
        return list(rows)
    ranked = {row.label: spread(_rank(row, whole, task) for task in tasks).mean for row in whole}
    return [replace(row, rank=ranked.get(row.label)) for row in rows]


def with_reference(rows: Sequence[Row], against: Row, *, tasks: Sequence[str]) -> list[Row]:
    """The rows with their comparison with ``against``, over the seeds that both have."""
    return [row if row is against else replace(row, comparison=_comparison(row, against, tasks)) for row in rows]


def difference(row: Row, against: Row, task: str | None) -> float | None:
    """Mean difference over the seeds that both rows have, in points; ``task=None`` is the average of the tasks."""
    mine, theirs = _by_seed(row, task), _by_seed(against, task)
    common = sorted(set(mine) & set(theirs))
    mean = spread(mine[seed] - theirs[seed] for seed in common).mean if common else math.nan
    return mean if math.isfinite(mean) else None


def _comparison(row: Row, against: Row, tasks: Sequence[str]) -> Comparison | None:
    points = {task: value for task in tasks if (value := difference(row, against, task)) is not None}
    if not points:
        return None
    average = difference(row, against, None)
    return Comparison(
        seeds=tuple(seed for seed in row.seeds if seed in against.seeds),
        differences={task: ScoreDifference(points=value) for task, value in points.items()},
        average=None if average is None else ScoreDifference(points=average),
        gain=_gain(row, against, tasks) if len(points) == len(tasks) else None,
        worst=min(points, key=lambda task: points[task]),
        worse=tuple(task for task, value in points.items() if value < 0),
    )


def _gain(row: Row, against: Row, tasks: Sequence[str]) -> float | None:
    shares = []
    for task in tasks:
        mine, theirs = _by_seed(row, task), _by_seed(against, task)
        common = sorted(set(mine) & set(theirs))
        base = spread(theirs[seed] for seed in common).mean
        if not base > 0:
            return None
        shares.append(spread(mine[seed] - theirs[seed] for seed in common).mean / base)
    return 100 * spread(shares).mean


def _by_seed(row: Row, task: str | None) -> dict[int, float]:
    done = [record for record in row.records if record.status == "ok"]
    if task is not None:
        return {r.cell.seed: r.scores[task].score for r in done if task in r.scores}
    return dict(zip(row.average_seeds, row.average.scores.values, strict=True)) if row.average else {}


def _is_number(row: Row, task: str) -> bool:
    return task in row.entries and math.isfinite(row.entries[task].scores.mean)


def _rank(row: Row, rows: Sequence[Row], task: str) -> float:
    mine = row.entries[task].scores.mean
    others = [other.entries[task].scores.mean for other in rows]
    return 0.5 + sum(other > mine for other in others) + sum(other == mine for other in others) / 2
