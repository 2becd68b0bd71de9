"""Runs that finished but say little about their method: constant answers, no better than chance, nothing learnt, ended
too early, worse than without training; and tasks that cannot tell.

Judged from records and from what is stored beside them: answers and step logs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mtlbench.api.record import Record, TaskScore
from mtlbench.api.study import AT_MAJORITY, Flag, Predictions, Row, Steps
from mtlbench.files.copies import in_copies
from mtlbench.results.rows import at_majority
from mtlbench.results.training_flags import (
    FEW_TO_VALIDATE,
    UNDECIDED,
    UNDEFINED,
    few_to_validate,
    of_training_losses,
    of_validation_losses,
    undecided_search,
)

if TYPE_CHECKING:
    from mtlbench.api.study import TaskAnswers

CONSTANT = "the same answer to every example"
UNPARSED = "answers that could not be read"
ONE_CLASS = "one class in the evaluation examples, so its scores say nothing"
BELOW_BASE = "below the untrained backbone (base) on average"
_TOGETHER = 32
"""Cells that are read in one go; fewer are read sooner than a copy of the process starts."""
_GOLD_FIRST = ("mcc", "f1", "pearson", "spearmanr")
"""Metrics whose items are pairs of gold label and answer."""


@dataclass(frozen=True, kw_only=True)
class StoredEvidence:
    """What is stored of one cell, and what it says is degenerate."""

    answers: Mapping[str, TaskAnswers] | None
    flags: tuple[Flag, ...]


def evidence_of(done: Sequence[Record], *, predictions: Predictions, steps: Steps) -> list[StoredEvidence]:
    """The evidence of each of the finished cells ``done``; hundreds of them are read in copies of this process."""

    def read(part: Sequence[Record]) -> list[StoredEvidence]:
        answers = [(record, predictions(record.key)) for record in part]
        return [StoredEvidence(answers=a, flags=flags_of(r, answers=a, steps=steps(r.key))) for r, a in answers]

    parts = [done[at : at + _TOGETHER] for at in range(0, len(done), _TOGETHER)]
    with in_copies(read, parts) as results:
        if len(parts) > 1:
            import scipy.stats  # noqa: F401  # takes as long as the reading, and the tests of a large study need it
        return [one for part in results() for one in part]


def flags_of(
    record: Record, *, answers: Mapping[str, TaskAnswers] | None, steps: Sequence[Mapping[str, Any]]
) -> tuple[Flag, ...]:
    """The flags of a finished cell.

    Args:
        answers: By full task name, where they are stored.
        steps: The cell's step log.
    """
    seed = record.cell.seed
    of_run = [*of_training_losses(record, steps), *of_validation_losses(record)]
    flags = [Flag(seed=seed, task=None, kind=kind, detail=detail) for kind, detail in of_run]
    flags += [Flag(seed=seed, task=t, kind=FEW_TO_VALIDATE, detail=d) for t, d in few_to_validate(record)]
    flags += [Flag(seed=seed, task=t, kind=UNDECIDED, detail=d) for t, d in undecided_search(record)]
    for task in record.cell.scored:
        task_answers = answers.get(task) if answers else None
        flags += [
            Flag(seed=seed, task=task, kind=kind, detail=detail) for kind, detail in _task(record, task, task_answers)
        ]
    return tuple(flags)


def below_base(rows: Sequence[Row]) -> list[Row]:
    """The rows with a flag for each seed whose average is below that of the row ``base``, the untrained backbone.

    It is compared with the base's score of the same seed, or with its mean where it has none.
    """
    base = next((row for row in rows if row.variant == "base" and row.average), None)
    if base is None or base.average is None:
        return list(rows)
    by_seed, mean = _averages(base), base.average.scores.mean

    def flagged(row: Row) -> Row:
        flags = [
            Flag(seed=seed, task=None, kind=BELOW_BASE, detail=f"{score:.1f}, base {by_seed.get(seed, mean):.1f}")
            for seed, score in _averages(row).items()
            if score < by_seed.get(seed, mean)
        ]
        return row if row is base else replace(row, flags=(*row.flags, *flags))

    return [flagged(row) for row in rows]


def _averages(row: Row) -> dict[int, float]:
    return dict(zip(row.average_seeds, row.average.scores.values, strict=True)) if row.average else {}


def _task(record: Record, task: str, answers: TaskAnswers | None) -> Iterator[tuple[str, str]]:
    score = record.scores.get(task)
    if score is not None and _one_class(score, answers):
        yield ONE_CLASS, ""
    elif score is not None:
        if not all(math.isfinite(value) for value in (score.score, *score.metrics.values())):
            yield UNDEFINED, "score"
        elif at_majority([score]):
            yield AT_MAJORITY, ""
    if answers is None:
        return
    if answers.undefined:
        yield UNDEFINED, f"likelihoods of {answers.undefined} of {answers.count} examples"
    elif answers.constant:
        yield CONSTANT, ""
    if answers.unparsed:
        yield UNPARSED, f"{answers.unparsed} of {answers.count}"


def _one_class(score: TaskScore, answers: TaskAnswers | None) -> bool:
    """Whether all evaluation examples have one gold label: any correlation is undefined, any accuracy a habit."""
    if score.rows < 2:
        return False
    if score.majority is not None:
        return score.majority >= 100
    for metric, items in (answers.items if answers else {}).items():
        if metric.partition(",")[0] in _GOLD_FIRST and items.ndim == 2 and len(items):
            return bool((items[:, 0] == items[0, 0]).all())
    return False
