"""What a finished training says of itself: nothing learnt, not a number, ended too early, validated on too little, an
architecture chosen without a preference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mtlbench.api.record import Record

UNDEFINED = "not a number"
STILL = "the training loss did not fall"
UNDERTRAINED = "undertrained: the validation loss was still falling at the last step"
FEW_TO_VALIDATE = "too few examples to validate on"
UNDECIDED = "the architecture search is undecided"
_LINES = 8
"""Minimum number of log lines of a task for its losses to be judged."""
_READ = 100
"""A longer log is subsampled to about this many lines."""
_FALL = 0.01
"""Share by which the loss of at least one task must fall; a validation loss that falls by it at the end is falling."""
_UNIFORM = 0.9
"""A search is undecided where the entropy at its last cut is above this share of a uniform mixture's."""
_FEWEST = 5
"""Fewer validation examples of a task are too few to choose the best step by."""


def of_training_losses(record: Record, steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Whether a training loss is not a number, or that of no task fell."""
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


def of_validation_losses(record: Record) -> Iterator[tuple[str, str]]:
    """Whether the validation loss still fell when the budget of a stage of the training was used up."""
    losses = _pairs(record.notes.get("stop_losses"))
    stages: list[Sequence[float]] = [stage["steps"] for stage in record.notes.get("stages", [])] or [(0, math.inf)]
    ends = []
    for start, end in stages:
        of_stage = [(step, loss) for step, loss in losses if start < step <= end]
        lowest = min((loss for _, loss in of_stage), default=math.nan)
        if len(of_stage) > 1 and lowest == of_stage[-1][1] and _fell(of_stage[-2][1], lowest):
            ends.append(of_stage[-2:])
    if ends:
        (first, before), (last, after) = ends[-1]
        of_stages = f", in {len(ends)} of {len(stages)} stages" if len(stages) > 1 else ""
        yield UNDERTRAINED, f"{before:.3g} to {after:.3g} from step {first:g} to {last:g}{of_stages}"


def _pairs(losses: Any) -> list[tuple[float, float]]:
    """The pairs of step and loss among what a record has; a plugin's notes may hold anything."""
    pairs = losses if isinstance(losses, list | tuple) else ()
    pairs = [pair for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2]
    return [
        (float(a), float(b)) for a, b in pairs if all(isinstance(n, int | float) and math.isfinite(n) for n in (a, b))
    ]


def few_to_validate(record: Record) -> Iterator[tuple[str, str]]:
    """Tasks whose validation split could not choose a best step, where one was chosen.

    Records of earlier versions do not say how large the split was, but a protocol that limits the training examples
    limits it too.
    """
    protocol, trained = record.cell.protocol, record.costs is not None and record.costs.trainable_parameters > 0
    if not (protocol.evals_per_run and protocol.held_out and trained):
        return
    known = record.notes.get("validation_examples")
    limit = protocol.train_rows
    if known is None and limit is not None:
        most = min(max(round(limit * protocol.held_out / 2), limit >= 10), max(0, limit - 1) // 2)
        known = dict.fromkeys(record.cell.tasks, most)
    for task, count in (known or {}).items():
        if count < _FEWEST:
            yield task, f"{count}"


def undecided_search(record: Record) -> Iterator[tuple[str | None, str]]:
    """Searches of an architecture whose last cut followed hardly any preference, by task where each has its own."""
    for task, entropy in last_entropies(record).items():
        if entropy > _UNIFORM:
            yield task or None, f"entropy at the last cut {entropy:.3g} of a uniform mixture's"


def last_entropies(record: Record) -> dict[str, float]:
    """How decided the searches of a record's training were: the entropy of the mixtures just before one operation was
    left, divided by that of uniform ones; by full task name, or under ``""`` where all tasks share one search."""
    found: dict[str, float] = {}
    for note in record.notes.values():
        by_task = note.get("by_task") if isinstance(note, Mapping) else None
        for task, search in by_task.items() if isinstance(by_task, Mapping) else [("", note)]:
            cuts = search.get("trajectory") if isinstance(search, Mapping) else None
            last = cuts[-1] if isinstance(cuts, list | tuple) and cuts else None
            entropy = last.get("entropy") if isinstance(last, Mapping) and last.get("keep") == 1 else None
            if isinstance(entropy, int | float) and math.isfinite(entropy):
                found[str(task)] = float(entropy)
    return found
