"""Where rows come from: the embedded demo, a folder that mirrors hub ids, or the hub itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench.api.task import Task, TaskSuite
from mtlbench.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import datasets


class Source(ABC):
    """Gives the rows of tasks."""

    name: ClassVar[str]

    @abstractmethod
    def identity(self, tasks: Sequence[Task]) -> str:
        """What enters :attr:`mtlbench.api.cell.Protocol.data`: it changes whenever rows of ``tasks`` can change."""

    @abstractmethod
    def check(self, task: Task) -> None:
        """Prove cheaply, before any compute, that the task's splits and columns are there.

        Raises:
            DataError: naming the file or data set, the split and the column.
        """

    @abstractmethod
    def splits(self, task: Task) -> dict[str, datasets.Dataset]:
        """The training and the evaluation split of the task by name.

        Raises:
            DataError: as :meth:`check`, for what only shows in the rows.
        """


def find_task(suites: Mapping[str, TaskSuite], name: str) -> Task:
    """The task with the full name ``suite/task``.

    Raises:
        DataError: no such suite or task among ``suites``.
    """
    known = {f"{suite}/{task.name}": task for suite, value in suites.items() for task in value.tasks}
    if name not in known:
        raise DataError(f"There is no task {name!r}. {did_you_mean(name, known)}")
    return known[name]


def check_rows(task: Task, *, where: str, split: str, columns: Collection[str], rows: int) -> None:
    """Fail when a split is empty or lacks a column that the task reads.

    Raises:
        DataError: ``where`` says which file or data set it is.
    """
    if rows == 0:
        raise DataError(f"Split {split!r} of task {task.name!r} is empty: {where}. Give it rows or leave the task out.")
    missing = [column for column in task.columns if column not in columns]
    if missing:
        raise DataError(
            f"{where} (split {split!r}) lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))} "
            f"that task {task.name!r} reads. It has: {', '.join(sorted(columns))}. "
            f"Use the columns of {task.dataset} on the hub."
        )


def wanted_splits(task: Task) -> tuple[str, ...]:
    """Training and evaluation split, each once."""
    return tuple(dict.fromkeys((task.train_split, task.eval_split)))


def dataset_of(table: Any, *, fingerprint: str) -> datasets.Dataset:
    """A pyarrow table as an in-memory data set: nothing is copied to a cache, so nothing stale is read back."""
    import datasets
    from datasets.table import InMemoryTable

    return datasets.Dataset(InMemoryTable(table), fingerprint=fingerprint)
