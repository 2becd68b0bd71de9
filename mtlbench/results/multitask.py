"""Rows beside a reference, task by task: what training together gained and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mtlbench.api.study import Comparison, Row, ScoreDifference, spread

REFERENCES = ("lora_st", "lora")
"""Variants that others are compared with, the first that has scores; without one, the table's first row."""


def reference_row(rows: Sequence[Row], label: str | None = None) -> Row | None:
    """The row with this label, or the one that :data:`REFERENCES` says."""
    if label is not None:
        return next((row for row in rows if row.label == label), None)
    by_variant = {row.variant: row for row in reversed(rows)}
    named = (by_variant[name] for name in REFERENCES if name in by_variant)
    return next(named, rows[0] if rows else None)


def with_ranks(rows: Sequence[Row], *, tasks: Sequence[str]) -> list[Row]:
    """The rows with their mean ranks over tasks, where at least two have scores of every task."""
    whole = [row for row in rows if all(_is_number(row, task) for task in tasks)]
    if len(whole) < 2:
        return list(rows)
    ranked = {row.label: spread(_rank(row, whole, task) for task in tasks).mean for row in whole}
    return [replace(row, rank=ranked.get(row.label)) for row in rows]


def with_reference(rows: Sequence[Row], against: Row, *, tasks: Sequence[str]) -> list[Row]:
    """The rows beside ``against``, over the seeds that both have."""
    return [row if row is against else replace(row, comparison=_beside(row, against, tasks)) for row in rows]


def difference(row: Row, against: Row, task: str | None) -> float | None:
    """Mean over the seeds that both rows have, in points; ``None`` as task is the average of the tasks."""
    own, other = _by_seed(row, task), _by_seed(against, task)
    common = sorted(set(own) & set(other))
    mean = spread(own[seed] - other[seed] for seed in common).mean if common else math.nan
    return mean if math.isfinite(mean) else None


def _beside(row: Row, against: Row, tasks: Sequence[str]) -> Comparison | None:
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
        own, other = _by_seed(row, task), _by_seed(against, task)
        common = sorted(set(own) & set(other))
        base = spread(other[seed] for seed in common).mean
        if not base > 0:
            return None
        shares.append(spread(own[seed] - other[seed] for seed in common).mean / base)
    return 100 * spread(shares).mean


def _by_seed(row: Row, task: str | None) -> dict[int, float]:
    done = [record for record in row.records if record.status == "ok"]
    if task is not None:
        return {r.cell.seed: r.scores[task].score for r in done if task in r.scores}
    return dict(zip(row.average_seeds, row.average.scores.values, strict=True)) if row.average else {}


def _is_number(row: Row, task: str) -> bool:
    return task in row.entries and math.isfinite(row.entries[task].scores.mean)


def _rank(row: Row, rows: Sequence[Row], task: str) -> float:
    own = row.entries[task].scores.mean
    others = [other.entries[task].scores.mean for other in rows]
    return 0.5 + sum(other > own for other in others) + sum(other == own for other in others) / 2
