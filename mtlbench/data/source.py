"""Where rows come from: the embedded demo, a folder that mirrors hub ids, or the hub itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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

    def revisions(self, tasks: Sequence[Task]) -> Mapping[str, str]:
        """Data set to the revision of the hub its rows are from, where that is known; no part of a cell's identity."""
        return {}


def find_task(suites: Mapping[str, TaskSuite], name: str) -> Task:
    """The task with the full name ``suite/task``.

    Raises:
        DataError: no such suite or task among ``suites``.
    """
    known = {f"{suite}/{task.name}": task for suite, value in suites.items() for task in value.tasks}
    if name not in known:
        raise DataError(f"There is no task {name!r}. {did_you_mean(name, known)}")
    return known[name]


def wanted_splits(task: Task) -> tuple[str, ...]:
    """Training and evaluation split and that of worked examples, each once."""
    shots = (task.shots_split,) if task.shots_split else ()
    return tuple(dict.fromkeys((task.train_split, task.eval_split, *shots)))


def dataset_of(table: Any, *, fingerprint: str) -> datasets.Dataset:
    """A pyarrow table as an in-memory data set: nothing is copied to a cache, so nothing stale is read back."""
    import datasets
    from datasets.table import InMemoryTable

    return datasets.Dataset(InMemoryTable(table), fingerprint=fingerprint)
