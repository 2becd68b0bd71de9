"""Runs that finished but say nothing about their method: constant answers, no better than chance, nothing learnt.

Judged from what is stored beside their records: answers and step logs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtlbench.api.record import Record
from mtlbench.api.study import AT_MAJORITY, Flag, Predictions, Steps
from mtlbench.files.copies import in_copies
from mtlbench.results.rows import at_majority

if TYPE_CHECKING:
    from mtlbench.api.study import TaskAnswers

CONSTANT = "the same answer to every example"
UNDEFINED = "not a number"
UNPARSED = "answers that could not be read"
STILL = "the training loss did not fall"
_TOGETHER = 32
"""Cells that are read in one go; fewer are read sooner than a copy of the process starts."""
_LINES = 8
"""Minimum number of log lines of a task for its losses to be judged."""
_READ = 100
"""A longer log is subsampled to about this many lines."""
_FALL = 0.01
"""Share by which the loss of at least one task must fall."""


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
    flags = [Flag(seed=seed, task=None, kind=kind, detail=detail) for kind, detail in _training(record, steps)]
    for task in record.cell.scored:
        task_answers = answers.get(task) if answers else None
        flags += [
            Flag(seed=seed, task=task, kind=kind, detail=detail) for kind, detail in _task(record, task, task_answers)
        ]
    return tuple(flags)


def _task(record: Record, task: str, answers: TaskAnswers | None) -> Iterator[tuple[str, str]]:
    score = record.scores.get(task)
    if score is not None:
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


def _training(record: Record, steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    if any(isinstance(loss := line.get("loss"), float) and not math.isfinite(loss) for line in steps):
        yield UNDEFINED, "training loss"
        return
    if not record.costs or not record.costs.trainable_parameters:
        return
    ends = []
    for losses in _curves(steps[:: len(steps) // _READ + 1]):
        if len(losses) < _LINES:
            continue
        ends.append(_ends(losses))
        if _fell(*ends[-1]):
            return
    if ends:
        yield STILL, f"{_mean([first for first, _ in ends]):.3g} to {_mean([last for _, last in ends]):.3g}"


def _curves(steps: Sequence[Mapping[str, Any]]) -> Iterator[list[float]]:
    """The losses of each task, or those of the steps where no task has one. Lazy, because the first curve that
    falls is enough."""
    by_task = [tasks for line in steps if isinstance(tasks := line.get("tasks"), Mapping)]
    none = True
    for name in sorted(set().union(*by_task)):
        losses = _finite(tasks.get(name) for tasks in by_task)
        none = none and not losses
        yield losses
    if none:
        yield _finite(line.get("loss") for line in steps)


def _finite(losses: Iterable[Any]) -> list[float]:
    return [float(loss) for loss in losses if isinstance(loss, int | float) and math.isfinite(loss)]


def _ends(losses: Sequence[float]) -> tuple[float, float]:
    """Means of the first and the last quarter of one task's losses: tasks trained in sequence show no joint fall."""
    quarter = len(losses) // 4
    return _mean(losses[:quarter]), _mean(losses[-quarter:])


def _fell(first: float, last: float) -> bool:
    return last < first - _FALL * abs(first)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
