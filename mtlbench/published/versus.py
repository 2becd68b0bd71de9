"""A run compared with a published table: paper value, our mean with its interval, inside or outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mtlbench.api.record import Record
from mtlbench.api.study import Entry, Interval, Row, Study, Table
from mtlbench.published.paper import METRICS, PublishedColumn, PublishedRow, PublishedTable
from mtlbench.text import aligned, one_line

_SIGNED = ("mcc", "pearson")
"""Metrics that can be negative."""


@dataclass(frozen=True, kw_only=True)
class PublishedComparison:
    """One cell of the paper and ours, in percent."""

    printed: PublishedRow
    row: Row
    column: str
    paper: float
    values: tuple[float, ...]
    """Ours, one per seed."""
    interval: Interval | None

    @property
    def verdict(self) -> str:
        """Whether the paper's value is inside our interval."""
        if self.interval is None:
            return "no interval"
        if self.paper in self.interval:
            return "inside"
        return f"outside, ours {'higher' if self.interval.mean > self.paper else 'lower'}"

    def beside(self, other: PublishedComparison) -> bool:
        """Whether ``other`` is another row of the paper's table, on the same backbone, in the same column."""
        return (
            other.row is not self.row
            and other.column == self.column
            and other.printed.backbone == self.printed.backbone
        )

    def minus(self, other: PublishedComparison) -> str | None:
        """Our mean difference to ``other`` in points, over the seeds that both have; ``None`` without any."""
        own, others = (dict(zip(c.row.seeds, c.values, strict=True)) for c in (self, other))
        differences = [value - others[seed] for seed, value in own.items() if seed in others]
        return f"{sum(differences) / len(differences):+.2f}" if differences else None

    def cells(self) -> list[str]:
        """A line of the table."""
        mean = sum(self.values) / len(self.values)
        ours = f"{mean:.2f}" if self.interval is None else str(self.interval)
        seeds = f"{len(self.values)} seed{'s' if len(self.values) > 1 else ''}"
        return [self.row.label, self.printed.name, self.column, f"{self.paper:.2f}", ours, seeds, self.verdict]


def versus_lines(published: PublishedTable, study: Study) -> Iterator[str]:
    """Every table of a study against a published one."""
    yield f"{published.full_name}: {published.caption}, {', '.join(published.backbones)}"
    for table in study.tables:
        yield ""
        yield f"against {table.title}"
        comparisons = list(compared(published, table))
        for difference in differences(published, table):
            yield f"  differs from the paper: {difference}"
        if not comparisons:
            yield "  no method and task of the paper is in this table"
            continue
        head = ["method", "paper's row", "task", "paper", "ours [95 %]", "over", "the paper's value is"]
        yield from (f"  {line}" for line in aligned([head, *(comparison.cells() for comparison in comparisons)]))
        yield from _gain_lines(comparisons, reference=table.reference)
        left = [row.name for row in published.rows if all(c.printed is not row for c in comparisons)]
        if left:
            yield f"  not in this table: {', '.join(left)}"


def _gain_lines(found: Sequence[PublishedComparison], *, reference: str | None) -> Iterator[str]:
    """What each row gains over the table's reference, where the paper prints the reference too."""
    rows = []
    for comparison in found:
        against = next((other for other in found if other.row.label == reference and comparison.beside(other)), None)
        if against is not None and (ours := comparison.minus(against)) is not None:
            paper = comparison.paper - against.paper
            rows.append([comparison.row.label, comparison.printed.name, comparison.column, f"{paper:+.2f}", ours])
    if rows:
        yield f"  difference to {reference}, over the seeds that both have"
        head = ["method", "paper's row", "task", "paper", "ours"]
        yield from (f"  {line}" for line in aligned([head, *rows]))


def compared(published: PublishedTable, table: Table) -> Iterator[PublishedComparison]:
    """Cells whose method and task correspond, and averages where all columns of the paper do."""
    for row in table.rows:
        done = [record for record in row.records if record.status == "ok"]
        for printed in published.rows if done else ():
            if not _same_method(printed, row) or (printed.k_shot and printed.k_shot != table.protocol.k_shot):
                continue
            ours: list[list[float]] = []
            for column, value in zip(published.columns, printed.values, strict=True):
                scores = _scores(column, done)
                if scores is None:
                    continue
                ours.append(scores)
                if value is not None:
                    paper = published.percent(value)
                    interval = _interval(
                        row.entries.get(column.task or ""), scores, low=-100 if column.metric in _SIGNED else 0
                    )
                    yield PublishedComparison(
                        printed=printed,
                        row=row,
                        column=column.name,
                        paper=paper,
                        values=tuple(scores),
                        interval=interval,
                    )
            if printed.average is not None and len(ours) == len(published.columns):
                means = [sum(of_seed) / len(of_seed) for of_seed in zip(*ours, strict=True)]
                yield PublishedComparison(
                    printed=printed,
                    row=row,
                    column="average",
                    paper=published.percent(printed.average),
                    values=tuple(means),
                    interval=_interval(row.average, means, low=-100),
                )


def differences(published: PublishedTable, table: Table) -> Iterator[str]:
    """The known differences between the paper's conditions and ours."""
    protocol = table.protocol
    models = {name.lower() for row in published.rows for name in (row.backbone, *row.models)}
    if table.model.lower() not in models:
        yield f"our backbone is {one_line(table.model)}, theirs {', '.join(published.backbones)}"
    if protocol.data.startswith("demo"):
        yield "ours is generated demo data: the numbers say nothing about the paper's"
    if protocol.eval_from_train:
        yield f"ours are scored on {protocol.eval_from_train:g} of the training examples"
    of_theirs = {row.train_rows for row in published.rows}
    if protocol.train_rows is not None and of_theirs != {protocol.train_rows}:
        yield f"ours are trained on at most {protocol.train_rows} examples per task"
    for rows in sorted(rows for rows in of_theirs if rows is not None and rows != protocol.train_rows):
        yield f"theirs are trained on {rows} examples of each task"
    if protocol.eval_rows is not None:
        yield f"ours are scored on at most {protocol.eval_rows} examples per task"
    theirs = {column.task for column in published.columns if column.task}
    if protocol.k_shot and not any(row.k_shot for row in published.rows):
        yield f"ours are trained on {protocol.k_shot} examples of each task"
    more = [task for task in table.tasks if task not in theirs]
    less = sorted(theirs - set(table.tasks))
    if more or less:
        changes = [f"with {', '.join(more)}"] * bool(more) + [f"without {', '.join(less)}"] * bool(less)
        yield f"ours are trained {' and '.join(changes)}"
    unknown = [column.name for column in published.columns if column.metric == "unknown" and column.task in table.tasks]
    if unknown:
        yield f"the paper does not state the metric of {', '.join(unknown)}, so they are not compared"
    other = [column.name for column in published.columns if _metric_lacks(column, table)]
    if other:
        yield f"our tasks lack the metric of {', '.join(other)}"


def _same_method(printed: PublishedRow, row: Row) -> bool:
    if printed.method is None:
        return False
    fixed = "[" in printed.method
    return printed.method == (row.variant if fixed else row.records[0].cell.method)


def _scores(column: PublishedColumn, records: Sequence[Record]) -> list[float] | None:
    """Our number for a column in percent, one per seed; ``None`` where a seed lacks it, and where the paper does not
    state the metric: a number of another metric is no comparison."""
    name = METRICS[column.metric]
    scores = []
    for record in records:
        score = record.scores.get(column.task or "")
        if score is None or name is None:
            return None
        values = [value for metric, value in score.metrics.items() if metric.partition(",")[0] == name]
        if not values:
            return None
        scores.append(100 * values[0])
    return scores


def _metric_lacks(column: PublishedColumn, table: Table) -> bool:
    if column.task not in table.tasks or column.metric == "unknown":
        return False
    scores = (r.scores.get(column.task or "") for row in table.rows for r in row.records)
    names = {name.partition(",")[0] for score in scores if score for name in score.metrics}
    return bool(names) and METRICS[column.metric] not in names


def _interval(entry: Entry | None, scores: Sequence[float], *, low: float) -> Interval | None:
    """The table's interval if it is for these numbers, else one over the seeds; clipped to the range of the metric."""
    from mtlbench.statistics.estimate import Measured, estimate

    interval = entry.interval if entry is not None and _equal(entry.scores.values, scores) else None
    if interval is None:
        import numpy as np

        estimated = estimate(Measured(seeds=tuple(range(len(scores))), values=np.array(scores)))
        interval = estimated.interval() if estimated else None
    return None if interval is None else replace(interval, low=max(low, interval.low), high=min(100.0, interval.high))


def _equal(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(abs(a - b) < 1e-6 for a, b in zip(one, other, strict=True))
