"""Numbers and sentences of a table, formatted the same way in every report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mtlbench.api.study import AT_MAJORITY, Entry, Flag, ForeignRow, Interval, Row, Spread, Table
from mtlbench.text import count, seeds_label, sentences

NONE = "–"
MAJORITY = "†"
TIED = "‡"
DIFFERS = "∗"


def mean(scores: Spread) -> str:
    """``66.8 ± 3.2``, without a deviation for one seed."""
    return f"{scores.mean:.1f}" if scores.sd is None else f"{scores.mean:.1f} ± {scores.sd:.1f}"


def interval(value: Interval) -> str:
    """``66.8 [63.1, 70.5]``."""
    return f"{value.mean:.1f} [{value.low:.1f}, {value.high:.1f}]"


def points(value: float, digits: int = 1) -> str:
    """``+1.2``, ``−0.3`` or ``0.0``."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def probability(p: float) -> str:
    """``0.04``, ``0.004`` or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.01 else f"{p:.2f}"


def counts(by_status: Mapping[str, int]) -> str:
    """``5 records: 3 ok, 2 failed. 1 cell without a record.``"""
    records = sum(n for status, n in by_status.items() if status != "missing")
    statuses = ", ".join(f"{by_status[status]} {status}" for status in ("ok", "failed", "skipped") if by_status[status])
    missing = f" {count(by_status['missing'], 'cell')} without a record." if by_status["missing"] else ""
    return f"{count(records, 'record')}{f': {statuses}' if statuses else ''}.{missing}"


def short_names(tasks: Sequence[str]) -> list[str]:
    """Names of tasks, without the suite where several tasks are all of one suite."""
    short = len(tasks) > 1 and len({task.partition("/")[0] for task in tasks}) == 1
    return [task.partition("/")[2] or task if short else task for task in tasks]


def metrics_of(table: Table, task: str) -> str:
    """``acc, f1``, or nothing where no row has scores."""
    return ", ".join(metric.partition(",")[0] for metric in table.metrics.get(task, ()))


def marks(entry: Entry, *, tied: str = TIED, majority: str = MAJORITY) -> str:
    """The marks after a score."""
    return (tied if entry.tied else "") + (majority if entry.at_majority else "")


def legend(table: Table, *, best: str = "in bold", tied: str = TIED, majority: str = MAJORITY) -> str:
    """Explanation of the numbers and marks of the scores, and of the tests."""
    entries = [entry for row in table.rows for entry in (*row.entries.values(), row.average) if entry]
    items = ["Scores in percent"]
    if any(entry.scores.sd is not None for entry in entries):
        items.append("mean ± standard deviation over seeds")
    if any(entry.best for entry in entries):
        items.append(f"best mean {best}")
    if any(entry.tied for entry in entries):
        items.append(f"{tied} not significantly worse than the best, corrected for all pairs of rows")
    if any(entry.at_majority for entry in entries):
        items.append(f"{majority} {AT_MAJORITY}")
    return sentences("; ".join(items), table.tests)


FOREIGN = (
    "Foreign rows were measured by other programs, under protocols of their own. Prompts, examples and budgets "
    "differ, so they are compared with no row of ours."
)
"""What a reader must know about foreign rows."""
FOREIGN_HEADER = ("foreign row", "program", "task", "metric", "score", "examples")


def foreign_cells(rows: Iterable[ForeignRow]) -> list[list[str]]:
    """A line for each score of foreign rows, with the columns :data:`FOREIGN_HEADER`."""
    return [
        [row.label, row.program, one.task, one.metric, f"{one.score:.1f}", NONE if one.rows is None else str(one.rows)]
        for row in rows
        for one in row.scores
    ]


def foreign_notes(rows: Iterable[ForeignRow]) -> list[str]:
    """A sentence for each foreign row: backbone, and what its file says about how it was measured."""
    return [
        f"{row.label}: on {row.model}; {row.details}"
        + (f"; {row.trainable_parameters:,} trained parameters" if row.trainable_parameters is not None else "")
        + f" ({row.file})."
        for row in rows
    ]


def troubles(row: Row) -> list[str]:
    """Failed, skipped and missing cells, each with the next step."""
    seeds = f"{len(row.seeds)} of {row.planned} seeds"
    return [f"({seeds}): {sentences(str(problem), problem.next_step)}" for problem in row.problems]


def flags(row: Row) -> list[str]:
    """``at or below the majority class: glue/rte (seeds 0, 1), glue/wnli (seed 2)``, one line for each kind."""
    kinds: dict[str, dict[str | None, list[Flag]]] = {}
    order = {task: at for at, task in enumerate(row.entries)}
    for flag in sorted(row.flags, key=lambda flag: order.get(flag.task or "", -1)):
        kinds.setdefault(flag.kind, {}).setdefault(flag.task, []).append(flag)
    return [
        f"{kind}: {', '.join(_flags_of_task(task, flagged) for task, flagged in tasks.items())}"
        for kind, tasks in kinds.items()
    ]


def _flags_of_task(task: str | None, flags: Iterable[Flag]) -> str:
    details: dict[str, list[int]] = {}
    for flag in flags:
        details.setdefault(flag.detail, []).append(flag.seed)
    text = "; ".join(f"{seeds_label(seeds)}{f': {detail}' if detail else ''}" for detail, seeds in details.items())
    return f"{task} ({text})" if task else text
