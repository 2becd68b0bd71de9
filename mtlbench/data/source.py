"""The interface of data sources: the embedded demo, a folder that mirrors hub ids, or the hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench.api.task import Task, TaskSuite
from mtlbench.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import datasets


class Source(ABC):
    """Provides the data of tasks."""

    name: ClassVar[str]

    @abstractmethod
    def identity(self, tasks: Sequence[Task]) -> str:
        """Value of :attr:`mtlbench.api.cell.Protocol.data`: it changes whenever the data of ``tasks`` may change."""

    @abstractmethod
    def check(self, task: Task) -> None:
        """Check cheaply, before any compute, that the task's splits and columns exist.

        Raises:
            DataError: naming the file or data set, the split and the column.
        """

    @abstractmethod
    def splits(self, task: Task) -> dict[str, datasets.Dataset]:
        """The required splits of the task, by name.

        Raises:
            DataError: as :meth:`check`, and for invalid values.
        """

    def revisions(self, tasks: Sequence[Task]) -> Mapping[str, str]:
        """Data set to its hub revision, where known; not part of a cell's identity."""
        return {}


def find_task(suites: Mapping[str, TaskSuite], name: str) -> Task:
    """The task with the full name ``suite/task``.

    Raises:
        DataError: the suite or task does not exist.
    """
    known = {f"{suite}/{task.name}": task for suite, value in suites.items() for task in value.tasks}
    if name not in known:
        raise DataError(f"There is no task {name!r}. {did_you_mean(name, known)}")
    return known[name]


def required_splits(task: Task) -> tuple[str, ...]:
    """The splits of training, evaluation and few-shot examples, each once."""
    shots = (task.shots_split,) if task.shots_split else ()
    return tuple(dict.fromkeys((task.train_split, task.eval_split, *shots)))


def dataset_of(table: Any, *, fingerprint: str) -> datasets.Dataset:
    """A pyarrow table as an in-memory data set, without the cache of ``datasets``, which may be stale."""
    import datasets
    from datasets.table import InMemoryTable

    return datasets.Dataset(InMemoryTable(table), fingerprint=fingerprint)
