"""Columns of a table next to its scores: costs, differences to the reference, and aggregates over tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mtlbench.api.study import Row, RowCosts, ScoreDifference, Table
from mtlbench.results.formatting import DIFFERS, NONE, interval, points, probability, short_names
from mtlbench.text import duration, memory, sentences


@dataclass(frozen=True, kw_only=True)
class NumberColumn:
    """A column of numbers over the rows of a table."""

    name: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | None]
    """Sort key."""
    title: str = ""
    """Explanation of the name, where it needs one."""


def cost_columns(table: Table) -> list[NumberColumn]:
    """Means over seeds; the peak memory is the highest. None where no row has costs.

    What is trainable is what is left after training; where more was trained at once, that is a column too.
    """
    if not any(row.costs for row in table.rows):
        return []
    kinds = sorted({row.costs.peak_memory_kind for row in table.rows if row.costs and row.costs.peak_memory_kind})
    return [
        _cost("trainable", lambda c: c.trainable_parameters.mean, "{:,.0f}".format),
        *([_cost("trained at once", _at_once, "{:,.0f}".format)] if any(_more(row) for row in table.rows) else []),
        _cost("of backbone", lambda c: c.trainable_percent, "{:.2f}%".format),
        _cost("added at inference", lambda c: c.inference_parameters.mean, "{:,.0f}".format),
        _cost("adapter on disk", lambda c: c.adapter_bytes.mean if c.adapter_bytes else None, memory),
        _cost(
            f"peak memory ({' and '.join(kinds)})" if kinds else "peak memory",
            lambda c: max(c.peak_memory.values) if c.peak_memory else None,
            memory,
        ),
        _cost("tokens/s", lambda c: c.tokens_per_second.mean or None, "{:,.0f}".format),
        _cost("training", lambda c: c.train_seconds.mean or None, duration),
        _cost("total", lambda c: c.total_seconds.mean, duration),
    ]


def _at_once(costs: RowCosts) -> float:
    return (costs.trained_at_once or costs.trainable_parameters).mean


def _more(row: Row) -> bool:
    return row.costs is not None and row.costs.trained_at_once is not None


def difference_columns(table: Table) -> list[NumberColumn]:
    """Differences to the reference on each task and in the average, or none where no row has any."""
    if not any(row.comparison for row in table.rows):
        return []
    names = dict(zip(table.tasks, short_names(table.tasks), strict=True))
    tasks = [_difference(name, task) for task, name in names.items()]
    return [*tasks, _difference("average", None)] if len(tasks) > 1 else tasks


def over_tasks_columns(table: Table) -> list[NumberColumn]:
    """Aggregates over all tasks, or none for one task or row."""
    if len(table.tasks) < 2 or not any(row.rank is not None for row in table.rows):
        return []
    of_row = [
        _number("mean rank", lambda row: row.rank, "{:.2f}".format, title="mean over tasks of the rank, 1 is best"),
        NumberColumn(
            name="IQM",
            text=lambda row: interval(row.iqm) if row.iqm else NONE,
            value=lambda row: row.iqm.mean if row.iqm else None,
            title="interquartile mean over seeds and tasks, with its 95 % interval",
        ),
    ]
    if not any(row.comparison for row in table.rows):
        return of_row
    names = dict(zip(table.tasks, short_names(table.tasks), strict=True))
    against_reference = [
        _number(
            "Δm",
            lambda row: row.comparison.gain if row.comparison else None,
            lambda gain: f"{points(gain)}%",
            title="mean over tasks of the relative difference, – where the reference scores 0 or less on one",
        ),
        NumberColumn(
            name="worse tasks",
            text=lambda row: _worse(row, len(table.tasks)),
            value=lambda row: len(row.comparison.worse) if row.comparison else None,
            title="tasks below the reference: negative transfer; in brackets, significantly so",
        ),
        NumberColumn(
            name="worst task",
            text=lambda row: _worst(row, names),
            value=lambda row: row.comparison.differences[row.comparison.worst].points if row.comparison else None,
        ),
        _number(
            "P(better)",
            lambda row: row.comparison.improvement if row.comparison else None,
            "{:.0f}%".format,
            title="probability that a run beats one of the reference on a task drawn at random",
        ),
        _number(
            "rank p",
            lambda row: row.comparison.rank_p if row.comparison else None,
            probability,
            title="test over seeds that the mean rank is the reference's, corrected as the differences",
        ),
    ]
    return [*against_reference, *of_row]


def difference_legend(table: Table) -> str:
    """Explanation of the differences."""
    differences = [
        difference for row in table.rows if row.comparison for difference in row.comparison.differences.values()
    ]
    text = f"Difference to {table.reference} in points, over the seeds that both have"
    if not any(len(row.comparison.seeds) > 1 for row in table.rows if row.comparison):
        return f"{text}: one, so a difference is one of trained models on these examples, not of methods."
    tested = any(one.p is not None for one in differences)
    corrected = "after Holm over the rows of the column"
    if table.reference_is_best:
        corrected = "corrected for all pairs of rows, because the reference was chosen as the best"
    return text + (f"; {DIFFERS} significant at 5 %, {corrected}." if tested else ".")


def over_tasks_legend(columns: Sequence[NumberColumn]) -> str:
    """Explanation of the columns over all tasks."""
    return sentences("; ".join(f"{column.name}: {column.title}" for column in columns if column.title))


def _cost(name: str, of: Callable[[RowCosts], float | None], format_: Callable[[float], str]) -> NumberColumn:
    return _number(name, lambda row: of(row.costs) if row.costs else None, format_)


def _number(
    name: str, value: Callable[[Row], float | None], format_: Callable[[float], str], *, title: str = ""
) -> NumberColumn:
    def formatted(row: Row) -> str:
        number = value(row)
        return NONE if number is None else format_(number)

    return NumberColumn(name=name, text=formatted, value=value, title=title)


def _difference(name: str, task: str | None) -> NumberColumn:
    """On a task, or in the average."""

    def of(row: Row) -> ScoreDifference | None:
        if row.comparison is None:
            return None
        return row.comparison.average if task is None else row.comparison.differences.get(task)

    def formatted(row: Row) -> str:
        one = of(row)
        return NONE if one is None else points(one.points) + (DIFFERS if one.significant else "")

    def value(row: Row) -> float | None:
        one = of(row)
        return one.points if one else None

    return NumberColumn(name=name, text=formatted, value=value, title=task or "")


def _worse(row: Row, tasks: int) -> str:
    if row.comparison is None:
        return NONE
    surely = sum(row.comparison.differences[task].significant for task in row.comparison.worse)
    return f"{len(row.comparison.worse)} of {tasks}" + (f" ({surely}{DIFFERS})" if surely else "")


def _worst(row: Row, names: Mapping[str, str]) -> str:
    if row.comparison is None:
        return NONE
    worst = row.comparison.worst
    return f"{names[worst]} {points(row.comparison.differences[worst].points)}"
