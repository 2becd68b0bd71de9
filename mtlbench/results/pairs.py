"""Two rows of one table: tests of their difference, and the number of seeds needed to detect one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mtlbench.api.record import Record
from mtlbench.api.study import Predictions, Row, Table
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.results.formatting import NONE, points, probability
from mtlbench.results.study import study_of
from mtlbench.text import aligned, count, seeds_label

if TYPE_CHECKING:
    from mtlbench.statistics.draws import AnswersOfRecords
    from mtlbench.statistics.estimate import Measured
    from mtlbench.statistics.on_examples import ExampleTest

AVERAGE = "average"


@dataclass(frozen=True, kw_only=True)
class RowPair:
    """Two comparable rows of a table."""

    table: Table
    row: Row
    against: Row

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that both have."""
        return tuple(seed for seed in self.row.seeds if seed in self.against.seeds)


def pair_of(records: Iterable[Record], *, method: str, against: str, number: int | None = None) -> RowPair:
    """The rows with these labels, which must be in one table.

    Args:
        number: Number of the table in reports; needed where several tables have both rows.

    Raises:
        RequestError: no row with scores has the label, the rows differ in their protocol, or several tables have both.
    """
    if method == against:
        raise RequestError(f"--method and --against are both {method!r}. Name two rows.")
    tables = dict(enumerate(study_of(records).tables, start=1))
    if number is not None:
        if number not in tables:
            raise RequestError(f"There is no table {number}: the folder has {count(len(tables), 'table')}.")
        tables = {number: tables[number]}
    one, other = (_holding(tables, label) for label in (method, against))
    both = [at for at in one if at in other]
    if not both:
        reason = _differing(next(iter(one.values())), next(iter(other.values())))
        raise RequestError(f"{method} and {against} cannot be compared: they differ in {reason}.")
    if len(both) > 1:
        titles = "; ".join(f"{at}: {tables[at].title}" for at in both)
        raise RequestError(f"{len(both)} tables have both {method} and {against}. Choose with --table: {titles}.")
    table = tables[both[0]]
    rows = {row.label: row for row in table.rows}
    return RowPair(table=table, row=rows[method], against=rows[against])


def _holding(tables: Mapping[int, Table], label: str) -> dict[int, Table]:
    known = list(dict.fromkeys(row.label for table in tables.values() for row in table.rows if row.seeds))
    if label not in known:
        raise RequestError(f"No row with scores is called {label!r}. {did_you_mean(label, known)}")
    return {at: table for at, table in tables.items() if any(row.label == label and row.seeds for row in table.rows)}


def _differing(one: Table, other: Table) -> str:
    fields = {name: (value, other.differs.get(name)) for name, value in one.differs.items()}
    fields |= {"backbone": (one.model, other.model), "tasks": (", ".join(one.tasks), ", ".join(other.tasks))}
    return "; ".join(f"{name} ({a} and {b})" for name, (a, b) in fields.items() if a != b)


def statistics_lines(pair: RowPair, *, predictions: Predictions, draws: int) -> list[str]:
    """Each task's difference with its interval and p, and a test on the examples, as lines of a table."""
    from mtlbench.statistics.tested import scores_of

    records = [record for row in (pair.row, pair.against) for record in row.records if record.status == "ok"]
    answers = {id(record): stored for record in records if (stored := predictions(record.key)) is not None}
    table = replace(pair.table, rows=(pair.row, pair.against))
    scores = scores_of(table, answers=answers, draws=draws)
    lines = [("task", "points", "95 % interval", "p", "on these examples", "p")]
    for task in table.tasks:
        test = _on_examples(pair, task, answers)
        lines.append((task, *_over_seeds(pair, scores.columns[task]), *_test_text(test)))
    lines.append((AVERAGE, *_over_seeds(pair, scores.average), "", ""))
    notes = [f"No resampling of the examples of {task}: {reason}." for task, reason in scores.without.items()]
    title = f"{pair.row.label} minus {pair.against.label}, {seeds_label(pair.seeds)}: {table.title}"
    closing = (
        "Intervals and the first p account for variance between seeds, and between examples where predictions are "
        "stored; p on these examples is valid for these trained models only. No p is corrected for the number of tasks."
    )
    return [title, "", *aligned(lines, left=(0, 4)), "", *notes, closing]


def _over_seeds(pair: RowPair, column: Mapping[str, Measured]) -> tuple[str, str, str]:
    from mtlbench.statistics.estimate import estimate

    mine, other = column.get(pair.row.label), column.get(pair.against.label)
    difference = mine.minus(other) if mine and other else None
    if difference is None:
        return NONE, NONE, NONE
    mean = points(float(difference.values.mean()), 2)
    estimated = estimate(difference)
    if estimated is None:
        return mean, NONE, NONE
    interval = estimated.interval()
    return mean, f"[{points(interval.low, 2)}, {points(interval.high, 2)}]", probability(interval.p)


def _on_examples(pair: RowPair, task: str, answers: AnswersOfRecords) -> ExampleTest | None:
    """McNemar's test for one seed of right and wrong answers, otherwise a permutation test."""
    from mtlbench.statistics.metrics import measures
    from mtlbench.statistics.on_examples import mcnemar, permutation

    by_seed = [{r.cell.seed: r for r in row.records if r.status == "ok"} for row in (pair.row, pair.against)]
    records = [[row[seed] for seed in pair.seeds if task in row[seed].scores] for row in by_seed]
    answered = [answers.get(id(record), {}).get(task) for row in records for record in row]
    stored = [one for one in answered if one is not None]
    if not stored or len(stored) < 2 * len(pair.seeds) or len({one.documents for one in stored}) > 1:
        return None
    made = measures([record.scores[task] for row in records for record in row], stored)
    if made is None:
        return None
    items = [next(iter(one.items.values())) for one in stored]
    if len(pair.seeds) == 1 and len(made) == 1 and all(i.ndim == 1 and set(i.tolist()) <= {0.0, 1.0} for i in items):
        return mcnemar(*items)
    half = len(pair.seeds)
    return permutation([metric[:half] for metric in made], [metric[half:] for metric in made])


def _test_text(test: ExampleTest | None) -> tuple[str, str]:
    if test is None:
        return NONE, NONE
    return f"{test.name}; {test.differing} of {test.examples} differ", probability(test.p)


def seeds_lines(pair: RowPair, *, task: str | None, wanted: float, level: float, power: float) -> list[str]:
    """The number of seeds needed to detect a difference of ``wanted`` points on a task, or on each and the average.

    Raises:
        RequestError: a number is out of range, the table lacks the task, or fewer than two seeds are shared.
    """
    for name, value, high in (("--points", wanted, 100.0), ("--alpha", level, 1.0), ("--power", power, 1.0)):
        if not 0 < value < high:
            raise RequestError(f"{name} must be above 0 and below {high:g}, got {value:g}.")
    if not power > level:
        raise RequestError(f"--power {power:g} must be above --alpha {level:g}.")
    known = [*pair.table.tasks, AVERAGE]
    if task is not None and task not in known:
        raise RequestError(f"These rows have no task {task!r}. {did_you_mean(task, known)}")
    if len(pair.seeds) < 2:
        raise RequestError(
            f"{pair.row.label} and {pair.against.label} share {count(len(pair.seeds), 'seed')}: a spread needs two. "
            "Run both with --seeds 0,1,2."
        )
    lines = [_plan_line(pair, name, wanted=wanted, level=level, power=power) for name in ([task] if task else known)]
    return [
        f"{pair.row.label} against {pair.against.label}, paired t-test, alpha {level:g}, power {power:g}, spread of "
        f"{seeds_label(pair.seeds)}:",
        *lines,
    ]


def _plan_line(pair: RowPair, task: str, *, wanted: float, level: float, power: float) -> str:
    from mtlbench.statistics.planner import MOST, seed_plan

    differences = _differences(pair, task)
    if len(differences) < 2:
        return f"{task}: fewer than two seeds have scores for both"
    plan = seed_plan(differences, points=wanted, level=level, power=power)
    if plan.sd == 0:
        return f"{task}: the difference is the same for {plan.measured} seeds, so there is no spread to plan with"
    needed, fewest, most = (
        f"more than {MOST:,}" if number >= MOST else f"{number:,}" for number in (plan.seeds, plan.fewest, plan.most)
    )
    return (
        f"to detect {wanted:.1f} {'point' if wanted == 1 else 'points'} on {task} you need {needed} seeds "
        f"(standard deviation of the difference {plan.sd:.2f} points; {fewest} to {most} by its interval from "
        f"{plan.measured} seeds)"
    )


def _differences(pair: RowPair, task: str) -> list[float]:
    by_seed: list[dict[int, float]] = []
    for row in (pair.row, pair.against):
        done = [record for record in row.records if record.status == "ok"]
        if task == AVERAGE:
            by_seed.append(dict(zip(row.average_seeds, row.average.scores.values, strict=True)) if row.average else {})
        else:
            by_seed.append({r.cell.seed: r.scores[task].score for r in done if task in r.scores})
    return [by_seed[0][seed] - by_seed[1][seed] for seed in pair.seeds if all(seed in scores for scores in by_seed)]
