"""Selection of training examples: all, a fixed subset for every cell, or k shots drawn with the cell's seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtlbench.data.examples import gold_index
from mtlbench.data.lm_task import choose_rows, quiet_lm_eval
from mtlbench.errors import DataError, RequestError

if TYPE_CHECKING:
    from mtlbench.compat import ConfigurableTask


def read_k_shot(text: str) -> tuple[int, bool]:
    """Parse ``16`` or ``16:class``: the number of examples, and whether it is per label.

    Raises:
        RequestError: it is neither.
    """
    count, _, per = text.partition(":")
    if not (count.isascii() and count.isdigit()) or int(count) < 1 or (text != count and per != "class"):
        raise RequestError(f"k_shot={text!r} must be K (rows of each task) or K:class (rows of each label), K >= 1.")
    return int(count), per == "class"


def chosen_rows(lm_task: ConfigurableTask, *, limit: int | None, k_shot: str, seed: int) -> list[int]:
    """Indices of the training examples to use, in order: at most ``limit``, of which ``k_shot`` are drawn by ``seed``.

    Shots are drawn uniformly from a task's training examples, with a seed independent of initialisation, as
    AkariAsai/ATTEMPT@613f700:attempt/data/tasks.py does (``n_obs`` rows of a permutation by ``data_seed``).

    Raises:
        DataError: a task has fewer examples than shots, or no fixed labels where shots are per label.
    """
    with quiet_lm_eval():
        docs = lm_task.training_docs()
    usable = choose_rows(len(docs), limit)
    if not k_shot:
        return usable
    count, per_class = read_k_shot(k_shot)
    order = random.Random(seed).sample(usable, len(usable))
    if per_class:
        return _of_each_label(lm_task, docs, order, count)
    if len(order) < count:
        raise DataError(f"Task {lm_task.config.task!r} has {len(order)} training rows: fewer than {count} shots.")
    return sorted(order[:count])


def _of_each_label(
    lm_task: ConfigurableTask, docs: Sequence[dict[str, object]], order: list[int], count: int
) -> list[int]:
    name = lm_task.config.task
    labels = lm_task.config.doc_to_choice
    if not isinstance(labels, list):
        raise DataError(
            f"Task {name!r} has no fixed labels: its choices differ from row to row. Take k_shot={count}, rows of each "
            "task, or omit the task."
        )
    by_label: dict[int, list[int]] = {label: [] for label in range(len(labels))}
    for row in order:
        shots = by_label[gold_index(lm_task, docs[row])]
        if len(shots) < count:
            shots.append(row)
        if all(len(rows) == count for rows in by_label.values()):
            break
    for label, rows in by_label.items():
        if len(rows) < count:
            raise DataError(
                f"Task {name!r} has {len(rows)} training rows labelled {labels[label]!r}: fewer than {count}."
            )
    return sorted(row for rows in by_label.values() for row in rows)
