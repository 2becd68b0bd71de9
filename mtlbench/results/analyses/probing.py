"""What training did to tasks that were never trained on: probe tasks before and after, by row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from mtlbench.api.record import ProbeScore, Record
from mtlbench.api.study import AT_MAJORITY, Interval, Row, Spread, Table, spread
from mtlbench.results.columns import NumberColumn
from mtlbench.results.formatting import MAJORITY, NONE, points, short_names
from mtlbench.results.rows import at_majority
from mtlbench.text import one_line, sentences

NOTHING_TO_FORGET = f"{MAJORITY} {AT_MAJORITY}, so there is nothing to forget"
"""Meaning of the mark after a score of the untrained backbone."""


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """Scores of a probe task, or the means over all of them, in percent, over the seeds that have both."""

    seeds: tuple[int, ...]
    before: float
    """Of the untrained backbone, mean over seeds."""
    after: float
    points: Spread
    """Before minus after by seed; negative where training helped."""
    interval: Interval | None
    """95 % interval of the mean over new seeds; ``None`` for one seed, and where all seeds have the same value."""


def probed(table: Table) -> list[Row]:
    """The rows with probe scores."""
    return [row for row in table.rows if any(record.probe for record in row.records)]


def forgetting(row: Row, tasks: Sequence[str]) -> Forgetting | None:
    """The means over ``tasks``, by seed; seeds without a score after training on one of them are omitted."""
    pairs = {record.cell.seed: scores for record in row.records if (scores := _scores(record, tasks))}
    if not pairs:
        return None
    befores = [sum(before for before, _ in scores) / len(scores) for scores in pairs.values()]
    afters = [sum(after for _, after in scores) / len(scores) for scores in pairs.values()]
    lost = spread(before - after for before, after in zip(befores, afters, strict=True))
    return Forgetting(
        seeds=tuple(pairs),
        before=spread(befores).mean,
        after=spread(afters).mean,
        points=lost,
        interval=_interval(lost, tuple(pairs)),
    )


def _scores(record: Record, tasks: Sequence[str]) -> list[tuple[float, float]]:
    found = [(score.before.score, score.after.score) for t in tasks if (score := record.probe.get(t)) and score.after]
    return found if len(found) == len(tasks) else []


def _interval(lost: Spread, seeds: tuple[int, ...]) -> Interval | None:
    if not lost.sd or not math.isfinite(lost.mean):
        return None
    import numpy as np

    from mtlbench.statistics.estimate import Measured, estimate  # scipy: only where there is something to estimate

    estimated = estimate(Measured(seeds=seeds, values=np.array(lost.values)))
    return estimated.interval() if estimated else None


def untrained(row: Row, tasks: Sequence[str]) -> float | None:
    """Mean score of the untrained backbone on ``tasks`` and seeds."""
    scores = [record.probe[task].before.score for record in row.records for task in tasks if task in record.probe]
    return sum(scores) / len(scores) if scores else None


def refusal(row: Row) -> str:
    """Why the row has no score after training, or nothing."""
    reasons = {one_line(score.refusal) for record in row.records for score in record.probe.values() if score.refusal}
    return "; ".join(sorted(reasons))


def forgetting_columns(table: Table) -> list[NumberColumn]:
    """Forgetting on each probe task and in the mean over them; none where nothing was probed."""
    tasks = table.protocol.probe_tasks
    if not tasks or not probed(table):
        return []
    columns = [_column(name, (task,)) for name, task in zip(short_names(tasks), tasks, strict=True)]
    return [*columns, _column("mean", tasks)] if len(tasks) > 1 else columns


def forgetting_legend(table: Table) -> str:
    """What the columns mean, the scores before training, and why a row has none after it."""
    tasks, rows = table.protocol.probe_tasks, probed(table)
    if not rows:
        return ""
    before = dict(zip(short_names(tasks), untrained_texts(table), strict=True))
    within = any(one.interval for row in rows if (one := forgetting(row, tasks)))
    marked = any(MAJORITY in text for text in before.values())
    return sentences(
        "Forgetting on tasks that were never trained on: score of the untrained backbone minus score after training, "
        f"in points{', mean over seeds with its 95 % interval' if within else ''}; negative where training helped",
        f"Untrained: {', '.join(f'{name} {text}' for name, text in before.items())}"
        + (f"; {NOTHING_TO_FORGET}" if marked else ""),
        *dict.fromkeys(f"{NONE} {reason}" for row in rows if (reason := refusal(row))),
    )


def untrained_texts(table: Table) -> list[str]:
    """The score of the untrained backbone on each probe task, marked where it knows nothing that could be forgotten."""
    return [_untrained(probed(table), task) for task in table.protocol.probe_tasks]


def _untrained(rows: Iterable[Row], task: str) -> str:
    scores = [score for row in rows for record in row.records for name, score in record.probe.items() if name == task]
    values = sorted(
        {f"{score.before.score:.1f}".replace("-", "−") for score in scores}, key=lambda text: (len(text), text)
    )
    return f"{' or '.join(values)}{MAJORITY if _at_majority(scores) else ''}"


def _at_majority(scores: Sequence[ProbeScore]) -> bool:
    return bool(scores) and at_majority([score.before for score in scores])


def _column(name: str, tasks: Sequence[str]) -> NumberColumn:
    def text(row: Row) -> str:
        one = forgetting(row, tasks)
        if one is None or not math.isfinite(one.points.mean):
            return NONE
        within = one.interval
        return points(one.points.mean) + (f" [{points(within.low)}, {points(within.high)}]" if within else "")

    return NumberColumn(name=name, text=text, value=partial(_points, tasks=tasks))


def _points(row: Row, *, tasks: Sequence[str]) -> float | None:
    one = forgetting(row, tasks)
    return one.points.mean if one else None
