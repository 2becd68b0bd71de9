"""Regression test: two sets of records compared task by task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mtlbench.api.cell import canonical
from mtlbench.api.record import Record
from mtlbench.api.study import Interval, Predictions
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.results.choosing import group_of, named_records, told_apart
from mtlbench.statistics.estimate import holm

if TYPE_CHECKING:
    from mtlbench.api.study import TaskAnswers
    from mtlbench.statistics.estimate import Estimate, Measured
    from mtlbench.store import RunFolder

ALPHA = 0.05
"""Significance level, after Holm's correction over everything compared."""
AVERAGE = "average"

DRAWS = 1000
"""Resamples of the examples."""


@dataclass(frozen=True, kw_only=True)
class RecordSet:
    """Finished records of one variant under one protocol, by seed."""

    name: str
    records: Mapping[int, Record]
    predictions: Predictions


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change on one task from the first set of records to the second, in points."""

    task: str
    """Full name, or ``average``."""
    before: float
    after: float
    interval: Interval | None
    """Of the paired difference; ``None`` with one seed and a metric that is not a mean over examples."""
    p: float | None = None
    """Corrected after Holm over the tasks; that of the average is not corrected."""

    @property
    def dropped(self) -> bool:
        """Whether it is a significant drop."""
        return self.p is not None and self.p <= ALPHA and self.after < self.before

    @property
    def verdict(self) -> str:
        if self.p is None:
            return "no interval: one seed, and not a mean over examples"
        if self.p > ALPHA:
            return "no significant change"
        return "DROP" if self.dropped else "rise"


def pairs_of(
    before: tuple[RunFolder, str | None], after: tuple[RunFolder, str | None]
) -> Iterator[tuple[RecordSet, RecordSet]]:
    """The sides to compare: the named variants of two run folders, or every variant that both have.

    Raises:
        RequestError: a variant is named on one side only or is unknown, or there is none in common.
    """
    (folder_a, variant_a), (folder_b, variant_b) = before, after
    a, b = _done(folder_a), _done(folder_b)
    if (variant_a is None) != (variant_b is None):
        raise RequestError("Name a variant on both sides, or on none: mtlbench compare runs/a:lora runs/b:lora")
    if variant_a is not None and variant_b is not None:
        yield _side(folder_a, a, variant_a), _side(folder_b, b, variant_b)
        return
    others = {record.cell.variant for record in b}
    shared = [variant for variant in dict.fromkeys(record.cell.variant for record in a) if variant in others]
    if not shared:
        raise RequestError(
            f"{folder_a.path} and {folder_b.path} have no finished variant in common. Name one on each side."
        )
    for variant in shared:
        ours, theirs = (_by_group(records, variant) for records in (a, b))
        common = [group for group in ours if group in theirs]
        if not common or len(ours) == len(theirs) == 1:
            yield _side(folder_a, a, variant), _side(folder_b, b, variant)
        for group in common if max(len(ours), len(theirs)) > 1 else ():
            protocol = ours[group][0].cell.protocol.hash()
            name = f"{variant}@{protocol}"
            yield _set(folder_a, ours[group], name), _set(folder_b, theirs[group], name)


def _by_group(records: Sequence[Record], variant: str) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.cell.variant == variant:
            groups.setdefault(group_of(record), []).append(record)
    return groups


def _done(folder: RunFolder) -> list[Record]:
    return [record for record in folder.records().values() if record.status == "ok"]


def _side(folder: RunFolder, records: Sequence[Record], variant: str) -> RecordSet:
    known = {record.cell.variant for record in records}
    name, variant, protocol = variant, *_without_protocol(variant, known)
    if variant not in known:
        raise RequestError(f"No finished cell of {variant!r} is in {folder.path}. {did_you_mean(variant, known)}")
    alike = [record for record in records if record.cell.variant == variant]
    return _set(folder, named_records(alike, protocol=protocol), name)


def _without_protocol(variant: str, known: Collection[str]) -> tuple[str, str | None]:
    """``lora@3f2a`` as variant and start of a protocol's hash."""
    first, at, protocol = variant.rpartition("@")
    return (first, protocol) if at and variant not in known else (variant, None)


def _set(folder: RunFolder, records: Sequence[Record], name: str) -> RecordSet:
    from mtlbench.statistics.answers import answers_in

    by_seed = {record.cell.seed: record for record in records}
    if len(by_seed) < len(records):
        raise RequestError(
            f"{folder.path} holds {name} more than once with one seed: {told_apart(records)}. Name a protocol after "
            f"the variant on both sides, such as {folder.path}:{name}@{records[0].cell.protocol.hash()}, or compare "
            "folders that hold one of each."
        )
    predictions = answers_in(folder, by_seed.values())
    return RecordSet(name=f"{folder.path}:{name}", records=by_seed, predictions=predictions)


def changes(one: RecordSet, other: RecordSet) -> tuple[Change, ...]:
    """Every task's change and that of the average, over the seeds that both sides have.

    Raises:
        RequestError: they differ in backbone, tasks or protocol, or share no seed.
    """
    _check_comparable(one, other)
    seeds = sorted(set(one.records) & set(other.records))
    if not seeds:
        raise RequestError(
            f"{one.name} has seeds {sorted(one.records)} and {other.name} {sorted(other.records)}: none is shared, so "
            "no seeds can be paired. Run the same seeds."
        )
    before, after = (_measured(side, seeds) for side in (one, other))
    same = _same_examples(one, other, seeds)
    changed = [_change(name, before[name], after[name], paired=name in same) for name in before if name in after]
    adjusted = holm([change.p for change in changed if change.task != AVERAGE and change.p is not None])
    left = iter(adjusted)
    return tuple(
        change if change.task == AVERAGE or change.p is None else replace(change, p=next(left)) for change in changed
    )


def _measured(side: RecordSet, seeds: list[int]) -> dict[str, Measured]:
    """Scores by task and their average, with the resamples of the examples that every study uses."""
    from mtlbench.results.study import study_of
    from mtlbench.statistics.tested import scores_of

    (table,) = study_of([side.records[seed] for seed in seeds]).tables
    (row,) = table.rows
    answers = {id(record): _answers(side, record.cell.seed) for record in row.records}
    scores = scores_of(table, answers=answers, draws=DRAWS)
    by_task = {task: column[row.label] for task, column in scores.columns.items() if row.label in column}
    return {**by_task, **({AVERAGE: scores.average[row.label]} if row.label in scores.average else {})}


def _answers(side: RecordSet, seed: int) -> Mapping[str, TaskAnswers]:
    return side.predictions(side.records[seed].key) or {}


def _same_examples(one: RecordSet, other: RecordSet, seeds: list[int]) -> set[str]:
    """Tasks on which both answered the same examples; also the average, if that holds for all tasks."""
    a, b = _answers(one, seeds[0]), _answers(other, seeds[0])
    tasks = one.records[seeds[0]].cell.tasks
    same = {task for task in tasks if task in a and task in b and a[task].documents == b[task].documents}
    return same | {AVERAGE} if same == set(tasks) else same


def _change(name: str, before: Measured, after: Measured, *, paired: bool) -> Change:
    from mtlbench.statistics.estimate import estimate

    if not paired:
        before, after = replace(before, draws=None), replace(after, draws=None)
    difference = after.minus(before)
    estimated = estimate(difference) if difference is not None else None
    return Change(
        task=name,
        before=float(before.values.mean()),
        after=float(after.values.mean()),
        interval=estimated.interval() if estimated else None,
        p=_p(estimated) if estimated else None,
    )


def _p(estimated: Estimate) -> float:
    """The p-value; of a sign-flip test where every example (or seed) changed equally and the variance is zero."""
    if estimated.components or estimated.mean == 0:
        return estimated.p
    return min(1.0, 2 * 0.5 ** (estimated.examples or estimated.seeds))


def _check_comparable(one: RecordSet, other: RecordSet) -> None:
    a, b = (next(iter(side.records.values())).cell for side in (one, other))
    fields: dict[str, tuple[Any, Any]] = {
        **({} if a.weights and a.weights == b.weights else {"backbone": (a.model, b.model)}),
        "weights of the backbone": (a.weights, b.weights),
        "tasks": (", ".join(a.tasks), ", ".join(b.tasks)),
    }
    theirs = b.protocol.compared()
    fields.update({name: (value, theirs[name]) for name, value in a.protocol.compared().items()})
    differing = [f"{name} ({x} and {y})" for name, (x, y) in fields.items() if canonical(x) != canonical(y)]
    if differing:
        raise RequestError(f"{one.name} and {other.name} cannot be compared: they differ in {'; '.join(differing)}.")
