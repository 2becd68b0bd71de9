"""Evaluation splits taken from the training split, in place of the official evaluation split.

There are two purposes. ``holdout`` defines the evaluation split of a protocol, for comparison with papers that did so;
``eval_from_train`` is for scoring trials of ``mtlbench tune``. With both, trials are scored on examples outside the
holdout, so that the final evaluation examples influence no choice.
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
    """The splits of a cell under ``protocol``: the official ones, or parts of the training split.

    Raises:
        DataError: the training split cannot be divided.
    """
    if protocol.holdout:
        splits = holdout_splits(task, splits, share=protocol.holdout)
    if protocol.eval_from_train:
        splits = eval_from_train_splits(task, splits, share=protocol.eval_from_train, train_rows=protocol.train_rows)
    return splits


def holdout_splits(task: Task, splits: Mapping[str, datasets.Dataset], *, share: float) -> dict[str, datasets.Dataset]:
    """The splits of ``task`` with ``share`` of its whole training split as evaluation split.

    The number of examples is rounded up, as common splitting functions do. They are drawn with a fixed seed,
    independent of other limits, so that every cell of the protocol is scored on the same ones.

    Raises:
        DataError: there are fewer than two training examples, or the task trains and evaluates on one split.
    """
    rows = len(splits[task.train_split])
    count = min(max(1, math.ceil(round(share * rows, 6))), rows - 1)
    drawn = random.Random("holdout").sample(range(rows), max(0, count))
    return _divided(task, splits, usable=range(rows), scored=drawn)


def eval_from_train_splits(
    task: Task, splits: Mapping[str, datasets.Dataset], *, share: float, train_rows: int | None
) -> dict[str, datasets.Dataset]:
    """The splits of ``task`` with ``share`` of its training examples in place of its evaluation split.

    The official evaluation split is dropped here, before any prompt is made of it, so no choice by these scores can
    depend on it. Examples are drawn with a fixed seed: every cell of a study is scored on the same ones. With
    ``train_rows`` they are among those, so that no more labels are used than the limit allows.

    Raises:
        DataError: there are fewer than two training examples, or the task trains and evaluates on one split.
    """
    usable = choose_rows(len(splits[task.train_split]), train_rows)
    at = choose_rows(len(usable), min(max(1, round(share * len(usable))), len(usable) - 1)) if len(usable) > 1 else []
    return _divided(task, splits, usable=usable, scored=[usable[i] for i in at])


def _divided(
    task: Task, splits: Mapping[str, datasets.Dataset], *, usable: Sequence[int], scored: Sequence[int]
) -> dict[str, datasets.Dataset]:
    """Splits of the training rows ``usable``: ``scored`` for evaluation, the rest for training; and few-shot rows."""
    if task.train_split == task.eval_split:
        raise DataError(
            f"Task {task.name!r} trains and evaluates on one split, {task.train_split!r}: no training rows can be "
            "held out for scoring. Omit the task."
        )
    if len(usable) < 2:
        raise DataError(
            f"Task {task.name!r} has {len(usable)} training row, and at least two are needed to hold one out."
        )
    rows, evaluated = splits[task.train_split], set(scored)
    examples = {task.shots_split: splits[task.shots_split]} if task.shots_split else {}
    return {
        **examples,
        task.train_split: rows.select([row for row in usable if row not in evaluated]),
        task.eval_split: rows.select([row for row in usable if row in evaluated]),
    }
