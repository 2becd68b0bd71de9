"""Scoring on training rows: the evaluation split of a task replaced by rows kept from training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mtlbench.api.task import Task
from mtlbench.data.lm_task import choose_rows
from mtlbench.errors import DataError

if TYPE_CHECKING:
    import datasets


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
    if task.train_split == task.eval_split:
        raise DataError(
            f"Task {task.name!r} trains and evaluates on one split, {task.train_split!r}: no training rows can be set "
            "apart to score on. Leave the task out."
        )
    rows = splits[task.train_split]
    usable = choose_rows(len(rows), train_rows)
    if len(usable) < 2:
        raise DataError(f"Task {task.name!r} has {len(usable)} training row to divide: give it at least two.")
    scored = set(choose_rows(len(usable), min(max(1, round(share * len(usable))), len(usable) - 1)))
    return {
        task.train_split: rows.select([row for at, row in enumerate(usable) if at not in scored]),
        task.eval_split: rows.select([row for at, row in enumerate(usable) if at in scored]),
    }
