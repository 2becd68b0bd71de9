"""A table with its tests: which rows are as good as the best, what differs from the reference, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mtlbench.api.study import Entry, Interval, Row, ScoreDifference, Table
from mtlbench.statistics.answers import Numbers
from mtlbench.statistics.draws import Held, scores_on_draws
from mtlbench.statistics.estimate import Measured, estimate, estimate_of, student
from mtlbench.statistics.intervals import holm
from mtlbench.statistics.over_tasks import ALPHA, improvement, interquartile_mean, wilcoxon
from mtlbench.text import one_line, sentences

AVERAGE = "average"
_NAMED = 4
"""Rows that a sentence names."""
Column = Mapping[str, Measured]
"""Row label to scores."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores:
    """What all tests of a table are made of."""

    columns: Mapping[str, Column]
    """By full task name."""
    average: Column
    without: Mapping[str, str]
    """Tasks whose examples could not be resampled, and why."""


def tested(table: Table, *, answers: Held, draws: int) -> Table:
    """The table with intervals, marks and p-values; ``draws`` 0 lets only the seeds vary."""
    scores = scores_of(table, answers=answers, draws=draws)
    columns = {**scores.columns, AVERAGE: scores.average}
    ties = _ties(table.rows, columns)
    rows = [replace(_with_entries(row, columns, ties), iqm=_iqm(row, table, scores)) for row in table.rows]
    rows = _with_tests(rows, table, scores, columns)
    return replace(table, rows=tuple(rows), tests=_words(rows, draws), notes=(*table.notes, *_notes(scores)))


def scores_of(table: Table, *, answers: Held, draws: int) -> Scores:
    """The scores of all rows on all tasks, on the same draws of the examples."""
    columns, without = {}, {}
    for task in table.tasks:
        columns[task], reason = scores_on_draws(task, table.rows, answers=answers, draws=draws)
        if reason is not None:
            without[task] = reason
    average = {row.label: mean for row in table.rows if (mean := _average(row.label, columns)) is not None}
    return Scores(columns=columns, average=average, without=without)


def _average(label: str, columns: Mapping[str, Column]) -> Measured | None:
    """Mean over all tasks by seed; tasks without draws count in each draw with what was measured."""
    held = [column[label] for column in columns.values() if label in column]
    seeds = tuple(sorted(set.intersection(*(set(own.seeds) for own in held)))) if held else ()
    if len(held) < len(columns) or not seeds:
        return None
    held = [own.only(seeds) for own in held]
    drawn = [own for own in held if own.draws is not None]
    parts = [own.values[None] if own.draws is None else own.draws for own in held]
    return Measured(
        seeds=seeds,
        values=np.mean([own.values for own in held], axis=0),
        draws=sum(parts[1:], start=parts[0]) / len(parts) if drawn else None,
        examples=sum(own.examples or 0 for own in drawn) or None,
    )


def _ties(rows: Sequence[Row], columns: Mapping[str, Column]) -> Mapping[str, Mapping[str, bool]]:
    """Column to row label to whether the row is not significantly worse than the best."""
    found = {}
    for name, column in columns.items():
        entries = {row.label: row.average if name == AVERAGE else row.entries.get(name) for row in rows}
        best = next((label for label, entry in entries.items() if entry and entry.best and label in column), None)
        if best is not None:
            found[name] = as_good_as(best, column)
    return found


def as_good_as(best: str, column: Column) -> dict[str, bool]:
    """Whether each other row is not significantly worse than ``best``, which was chosen after looking.

    Because of that choice the level is shared by all pairs of rows (Bonferroni): among rows that are all alike, the
    chance that any is called worse is at most 5 %. Tukey's range asks less but takes one variance for all rows; with
    one for each pair, 16 % of tables of ten alike rows and three seeds called one worse. Rows that nothing can be said
    of are left out.
    """
    pairs = len(column) * (len(column) - 1) / 2
    found = {}
    for label, measured in column.items():
        difference = None if label == best else column[best].minus(measured)
        told = estimate(difference) if difference else None
        if told is not None and (told.parts or told.mean == 0):
            found[label] = told.mean <= told.reach(partial(student, p=ALPHA / pairs))
    return found


def _with_entries(row: Row, columns: Mapping[str, Column], ties: Mapping[str, Mapping[str, bool]]) -> Row:
    def told(entry: Entry, name: str) -> Entry:
        own = estimate(columns[name][row.label]) if row.label in columns[name] else None
        tied = None if entry.best else ties.get(name, {}).get(row.label)
        return replace(entry, tied=tied, interval=own.interval() if own else None)

    return replace(
        row,
        entries={task: told(entry, task) for task, entry in row.entries.items()},
        average=row.average and told(row.average, AVERAGE),
    )


def _with_tests(rows: Sequence[Row], table: Table, scores: Scores, columns: Mapping[str, Column]) -> list[Row]:
    """Tests against the reference, with Holm's correction over the rows of each column."""
    told = {name: _differences(column, table.reference) for name, column in columns.items()}
    over = _signed_ranks(rows, table)
    against = next((row for row in rows if row.label == table.reference), None)
    found = []
    for row in rows:
        beside = row.comparison
        if beside is not None and against is not None:
            beside = replace(
                beside,
                differences={task: told[task].get(row.label, one) for task, one in beside.differences.items()},
                average=beside.average and told[AVERAGE].get(row.label, beside.average),
                wilcoxon=over.get(row.label),
                improvement=_improvement(row, against, table, scores),
            )
        found.append(replace(row, comparison=beside))
    return found


def _differences(column: Column, reference: str | None) -> dict[str, ScoreDifference]:
    estimates = {}
    against = column.get(reference or "")
    for label, measured in column.items():
        difference = measured.minus(against) if against is not None and label != reference else None
        told = estimate(difference) if difference else None
        if told is not None:
            estimates[label] = told
    adjusted = holm([one.p for one in estimates.values()])
    return {
        label: ScoreDifference(points=one.mean, interval=one.interval(), p=p)
        for (label, one), p in zip(estimates.items(), adjusted, strict=True)
    }


def _signed_ranks(rows: Sequence[Row], table: Table) -> dict[str, float]:
    whole = {
        row.label: [row.comparison.differences[task].points for task in table.tasks]
        for row in rows
        if row.comparison and len(table.tasks) > 1 and set(table.tasks) <= set(row.comparison.differences)
    }
    whole = {label: points for label, points in whole.items() if np.isfinite(points).all()}
    return dict(zip(whole, holm([wilcoxon(points) for points in whole.values()]), strict=True))


def _grid(row: Row, table: Table, scores: Scores) -> tuple[Numbers, Numbers | None, int | None] | None:
    """Scores ``[seeds, tasks]`` of the seeds with all tasks, draws ``[draws, seeds, tasks]``, and examples."""
    if row.label not in scores.average:
        return None
    seeds = scores.average[row.label].seeds
    held = [scores.columns[task][row.label].only(seeds) for task in table.tasks]
    values = np.stack([own.values for own in held], 1)
    drawn = [own.draws for own in held if own.draws is not None]
    if not drawn:
        return values, None, None
    draws = [np.broadcast_to(own.values, drawn[0].shape) if own.draws is None else own.draws for own in held]
    return values, np.stack(draws, 2), scores.average[row.label].examples


def _iqm(row: Row, table: Table, scores: Scores) -> Interval | None:
    grid = _grid(row, table, scores)
    if grid is None or len(table.tasks) < 2:
        return None
    told = estimate_of(interquartile_mean, *grid[:2], examples=grid[2])
    return told.interval() if told else None


def _improvement(row: Row, against: Row, table: Table, scores: Scores) -> float | None:
    """Told without an interval: near 0 and 100 % none that we tried covers what it should (docs/statistics.md)."""
    one, other = _grid(row, table, scores), _grid(against, table, scores)
    if one is None or other is None or not (np.isfinite(one[0]).all() and np.isfinite(other[0]).all()):
        return None
    return float(improvement(one[0], other[0]))


def _words(rows: Sequence[Row], draws: int) -> str:
    known = [entry.interval for row in rows for entry in (*row.entries.values(), row.average) if entry]
    if not any(known):
        several = sum(bool(row.seeds) for row in rows) > 1
        return "No tests: they take two seeds, or stored predictions." if several else ""
    seeds = any(interval.seeds > 1 for interval in known if interval)
    examples = any(interval.examples for interval in known if interval)
    varied = " and ".join([*(["seeds"] if seeds else []), *([f"examples ({draws:,} resamples)"] if examples else [])])
    alone = "" if seeds else "; with one seed they hold for the trained models, not for their methods"
    return sentences(f"Tests and 95 % intervals are over {varied}{alone}", _untested(rows))


def _untested(rows: Sequence[Row]) -> str:
    """Scores without a mark because nothing is known of how they vary beside the best."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, entry in (*row.entries.items(), (AVERAGE, row.average)):
            if entry is not None and entry.tied is None and not entry.best:
                found.setdefault(row.label, []).append(one_line(name))
    several = sum(row.average is not None for row in rows) > 1
    told = "; ".join(f"{label} ({', '.join(names)})" for label, names in list(found.items())[:_NAMED])
    told += f"; and {len(found) - _NAMED} more rows" if len(found) > _NAMED else ""
    return (
        f"Not tested against the best, because the seeds they share show no spread: {told}" if found and several else ""
    )


def _notes(scores: Scores) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for task, reason in scores.without.items():
        reasons.setdefault(reason, []).append(one_line(task))
    return [f"No resampling of the examples of {', '.join(tasks)}: {reason}." for reason, tasks in reasons.items()]
