"""Evaluation on training rows: the evaluation split of a task replaced by rows kept from training.

Two reasons, two functions. ``holdout`` makes a protocol's evaluation split of the training split, for comparison with
papers that did; ``eval_from_train`` scores the trials of a tuning. Trials of a holdout protocol are scored on rows of
what the holdout left, so that the final evaluation rows choose nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mtlbench.api.cell import Protocol
from mtlbench.api.task import Task
from mtlbench.data.lm_task import choose_rows
from mtlbench.errors import DataError

if TYPE_CHECKING:
    import datasets


def splits_under(
    task: Task, splits: Mapping[str, datasets.Dataset], protocol: Protocol
) -> Mapping[str, datasets.Dataset]:
    """The splits that a cell under ``protocol`` has: the official ones, or divided training rows.

    Raises:
        DataError: the training rows cannot be divided.
    """
    if protocol.holdout:
        splits = held_out(task, splits, share=protocol.holdout)
    if protocol.eval_from_train:
        splits = scored_from_train(task, splits, share=protocol.eval_from_train, train_rows=protocol.train_rows)
    return splits


def held_out(task: Task, splits: Mapping[str, datasets.Dataset], *, share: float) -> dict[str, datasets.Dataset]:
    """The splits of ``task`` with ``share`` of its whole training split as its evaluation split.

    The number of rows is rounded up, as common splitting functions do. Rows are drawn from a fixed seed, whatever
    other limits a cell has, so that every cell of the protocol is scored on the same ones.

    Raises:
        DataError: there are fewer than two training rows, or the task trains and evaluates on one split.
    """
    rows = len(splits[task.train_split])
    count = min(max(1, math.ceil(round(share * rows, 6))), rows - 1)
    drawn = random.Random("holdout").sample(range(rows), max(0, count))
    return _divided(task, splits, usable=range(rows), scored=drawn)


def scored_from_train(
    task: Task, splits: Mapping[str, datasets.Dataset], *, share: float, train_rows: int | None
) -> dict[str, datasets.Dataset]:
    """The splits of ``task`` with ``share`` of its training rows in place of its evaluation split.

    The evaluation rows are dropped here, before anything is made of them, so nothing chosen by these scores can have
    seen them. Rows are drawn from a fixed seed: every cell of a study is scored on the same ones. With ``train_rows``
    they come out of those rows, so that no more labels are used than a cell with that limit may.

    Raises:
        DataError: there are fewer than two training rows, or the task trains and evaluates on one split.
    """
    usable = choose_rows(len(splits[task.train_split]), train_rows)
    at = choose_rows(len(usable), min(max(1, round(share * len(usable))), len(usable) - 1)) if len(usable) > 1 else []
    return _divided(task, splits, usable=usable, scored=[usable[i] for i in at])


def _divided(
    task: Task, splits: Mapping[str, datasets.Dataset], *, usable: Sequence[int], scored: Sequence[int]
) -> dict[str, datasets.Dataset]:
    """The training rows ``usable`` without and with those ``scored``, and worked examples; other rows are dropped."""
    if task.train_split == task.eval_split:
        raise DataError(
            f"Task {task.name!r} trains and evaluates on one split, {task.train_split!r}: no training rows can be set "
            "apart to score on. Leave the task out."
        )
    if len(usable) < 2:
        raise DataError(f"Task {task.name!r} has {len(usable)} training row to divide: give it at least two.")
    rows, apart = splits[task.train_split], set(scored)
    examples = {task.shots_split: splits[task.shots_split]} if task.shots_split else {}
    return {
        **examples,
        task.train_split: rows.select([row for row in usable if row not in apart]),
        task.eval_split: rows.select([row for row in usable if row in apart]),
    }
