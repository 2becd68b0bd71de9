"""Tests of a table: rows not worse than the best, differences to the reference, intervals and p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtlbench.api.study import Entry, Interval, Row, ScoreDifference, Table
from mtlbench.statistics.answers import Numbers
from mtlbench.statistics.best import Column, Differences, as_good_as
from mtlbench.statistics.draws import AnswersOfRecords, scores_on_draws
from mtlbench.statistics.estimate import Measured, estimate, estimate_of, holm
from mtlbench.statistics.over_tasks import improvement, interquartile_mean, ranks_by_seed
from mtlbench.text import one_line, sentences

AVERAGE = "average"
ONE_SEED = (
    "One seed is no comparison of methods: another seed can reverse any difference in this table, so no score is "
    "marked. Run --seeds 0,1,2 or more"
)
_MOST_NAMED = 4
"""Most rows that a sentence names."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores:
    """The input of all tests of a table."""

    columns: Mapping[str, Column]
    """By full task name."""
    average: Column
    without: Mapping[str, str]
    """Tasks whose examples could not be resampled, and why."""


def tested(table: Table, *, answers: AnswersOfRecords, draws: int) -> Table:
    """The table with intervals, marks and p-values; ``draws`` 0 accounts for the seeds only."""
    scores = scores_of(table, answers=answers, draws=draws)
    columns = {**scores.columns, AVERAGE: scores.average}
    ties = _ties(table.rows, columns)
    rows = [replace(_with_entries(row, columns, ties), iqm=_iqm(row, table, scores)) for row in table.rows]
    rows = _with_moves(_with_tests(rows, table, scores, columns), scores.average)
    return replace(table, rows=tuple(rows), tests=_test_legend(rows, draws), notes=(*table.notes, *_notes(scores)))


def scores_of(table: Table, *, answers: AnswersOfRecords, draws: int) -> Scores:
    """The scores of all rows on all tasks, on the same draws of the examples."""
    columns, without = {}, {}
    for task in table.tasks:
        columns[task], reason = scores_on_draws(task, table.rows, answers=answers, draws=draws)
        if reason is not None:
            without[task] = reason
    average = {row.label: mean for row in table.rows if (mean := _average(row.label, columns)) is not None}
    return Scores(columns=columns, average=average, without=without)


def _average(label: str, columns: Mapping[str, Column]) -> Measured | None:
    """Mean over all tasks by seed; a task without draws has its measured scores in each draw."""
    by_task = [column[label] for column in columns.values() if label in column]
    seeds = tuple(sorted(set.intersection(*(set(one.seeds) for one in by_task)))) if by_task else ()
    if len(by_task) < len(columns) or not seeds:
        return None
    by_task = [one.only(seeds) for one in by_task]
    drawn = [one for one in by_task if one.draws is not None]
    draws = [one.values[None] if one.draws is None else one.draws for one in by_task]
    return Measured(
        seeds=seeds,
        values=np.mean([one.values for one in by_task], axis=0),
        draws=sum(draws[1:], start=draws[0]) / len(draws) if drawn else None,
        examples=sum(one.examples or 0 for one in drawn) or None,
    )


def _ties(rows: Sequence[Row], columns: Mapping[str, Column]) -> Mapping[str, Mapping[str, bool]]:
    """Column to row label to whether the row is not significantly worse than the best."""
    ties = {}
    for name, column in columns.items():
        entries = {row.label: row.average if name == AVERAGE else row.entries.get(name) for row in rows}
        best = next((label for label, entry in entries.items() if entry and entry.best and label in column), None)
        if best is not None:
            ties[name] = as_good_as(best, column)
    return ties


def _with_entries(row: Row, columns: Mapping[str, Column], ties: Mapping[str, Mapping[str, bool]]) -> Row:
    def with_marks(entry: Entry, name: str) -> Entry:
        estimated = estimate(columns[name][row.label]) if row.label in columns[name] else None
        tied = None if entry.best else ties.get(name, {}).get(row.label)
        return replace(entry, tied=tied, interval=estimated.interval() if estimated else None)

    return replace(
        row,
        entries={task: with_marks(entry, task) for task, entry in row.entries.items()},
        average=row.average and with_marks(row.average, AVERAGE),
    )


def _with_tests(rows: Sequence[Row], table: Table, scores: Scores, columns: Mapping[str, Column]) -> list[Row]:
    """Tests against the reference, corrected over the rows of each column."""
    differences = {name: _differences(column, table) for name, column in columns.items()}
    over = _rank_tests(rows, table)
    against = next((row for row in rows if row.label == table.reference), None)
    with_tests = []
    for row in rows:
        comparison = row.comparison
        if comparison is not None and against is not None:
            comparison = replace(
                comparison,
                differences={
                    task: differences[task].get(row.label, one) for task, one in comparison.differences.items()
                },
                average=comparison.average and differences[AVERAGE].get(row.label, comparison.average),
                rank_p=over.get(row.label),
                improvement=_improvement(row, against, table, scores),
            )
        with_tests.append(replace(row, comparison=comparison))
    return with_tests


def _with_moves(rows: Sequence[Row], average: Column) -> list[Row]:
    """Tuned rows with their difference to the same method's default settings; no correction, as each answers a
    question of its own."""
    moved = []
    for row in rows:
        default = average.get(row.tuned.variant) if row.tuned and row.label != row.tuned.variant else None
        difference = average[row.label].minus(default) if default and row.label in average else None
        estimated = estimate(difference) if difference else None
        if difference and np.isfinite(difference.values).all():
            interval = estimated.interval() if estimated else None
            points = float(difference.values.mean())
            p = interval.p if interval else None
            row = replace(row, moved=ScoreDifference(points=points, interval=interval, p=p))
        moved.append(row)
    return moved


def _differences(column: Column, table: Table) -> dict[str, ScoreDifference]:
    estimates = {}
    against = column.get(table.reference or "")
    for label, measured in column.items():
        difference = measured.minus(against) if against is not None and label != table.reference else None
        estimated = estimate(difference) if difference else None
        if estimated is not None:
            estimates[label] = estimated
    corrected = _corrected({label: one.p for label, one in estimates.items()}, column, table)
    return {
        label: ScoreDifference(points=one.mean, interval=one.interval(), p=corrected[label])
        for label, one in estimates.items()
    }


def _corrected(p_values: Mapping[str, float], column: Column, table: Table) -> dict[str, float]:
    """By Holm over the rows; by Bonferroni over all pairs of rows where the reference was selected as the best."""
    pairs = len(column) * (len(column) - 1) / 2
    if table.reference_is_best:
        return {label: min(1.0, p * pairs) for label, p in p_values.items()}
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


def _rank_tests(rows: Sequence[Row], table: Table) -> dict[str, float]:
    """Row label to p that its mean rank over tasks is the reference's, over the seeds that all ranked rows have."""
    ranked = [row for row in rows if row.rank is not None]
    column = ranks_by_seed(ranked, table.tasks) if len(table.tasks) > 1 else {}
    if table.reference not in column:
        return {}
    differences = Differences(column)
    against = {label: differences.of(label, table.reference) for label in column if label != table.reference}
    return _corrected({label: one.p for label, one in against.items() if one is not None}, column, table)


def _grid(row: Row, table: Table, scores: Scores) -> tuple[Numbers, Numbers | None, int | None] | None:
    """Scores ``[seeds, tasks]`` of the seeds with all tasks, draws ``[draws, seeds, tasks]``, and examples."""
    if row.label not in scores.average:
        return None
    seeds = scores.average[row.label].seeds
    by_task = [scores.columns[task][row.label].only(seeds) for task in table.tasks]
    values = np.stack([one.values for one in by_task], 1)
    drawn = [one.draws for one in by_task if one.draws is not None]
    if not drawn:
        return values, None, None
    draws = [np.broadcast_to(one.values, drawn[0].shape) if one.draws is None else one.draws for one in by_task]
    return values, np.stack(draws, 2), scores.average[row.label].examples


def _iqm(row: Row, table: Table, scores: Scores) -> Interval | None:
    grid = _grid(row, table, scores)
    if grid is None or len(table.tasks) < 2:
        return None
    estimated = estimate_of(interquartile_mean, *grid[:2], examples=grid[2])
    return estimated.interval() if estimated else None


def _improvement(row: Row, against: Row, table: Table, scores: Scores) -> float | None:
    """Without an interval: near 0 and 100 % the coverage of those we tried is too low (docs/statistics.md)."""
    one, other = _grid(row, table, scores), _grid(against, table, scores)
    if one is None or other is None or not (np.isfinite(one[0]).all() and np.isfinite(other[0]).all()):
        return None
    return float(improvement(one[0], other[0]))


def _test_legend(rows: Sequence[Row], draws: int) -> str:
    known = [entry.interval for row in rows for entry in (*row.entries.values(), row.average) if entry]
    scored = [row for row in rows if row.seeds]
    examples = [f"examples ({draws:,} resamples)"] if any(one.examples for one in known if one) else []
    if all(len(row.seeds) == 1 for row in scored):
        no_comparison = ONE_SEED if len(scored) > 1 else ""
        valid = "valid for these trained models on these examples, not for methods"
        return sentences(no_comparison, f"95 % intervals are over {examples[0]}: {valid}" if examples else "")
    varied = " and ".join(["seeds", *examples])
    return sentences(f"Tests and 95 % intervals are over {varied}", _untested(rows))


def _untested(rows: Sequence[Row]) -> str:
    """Scores without a mark because their difference to the best has no known variance."""
    untested: dict[str, list[str]] = {}
    for row in rows:
        for name, entry in (*row.entries.items(), (AVERAGE, row.average)):
            if entry is not None and entry.tied is None and not entry.best:
                untested.setdefault(row.label, []).append(one_line(name))
    several = sum(row.average is not None for row in rows) > 1
    text = "; ".join(f"{label} ({', '.join(names)})" for label, names in list(untested.items())[:_MOST_NAMED])
    text += f"; and {len(untested) - _MOST_NAMED} more rows" if len(untested) > _MOST_NAMED else ""
    return (
        f"Not tested against the best, because they share fewer than two seeds, or those show no spread: {text}"
        if untested and several
        else ""
    )


def _notes(scores: Scores) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for task, reason in scores.without.items():
        reasons.setdefault(reason, []).append(one_line(task))
    return [f"No resampling of the examples of {', '.join(tasks)}: {reason}." for reason, tasks in reasons.items()]
