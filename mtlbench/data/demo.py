"""Data from the generator of a suite."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mtlbench.api.cell import digest
from mtlbench.api.task import Task, TaskSuite
from mtlbench.data.cache import cached_table
from mtlbench.data.columns import check_schema, check_values
from mtlbench.data.source import Source, dataset_of, required_splits
from mtlbench.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow

    from mtlbench.api.task import Rows


class DemoSource(Source):
    """Generated data: deterministic, offline, and not a benchmark."""

    name = "demo"

    def __init__(self, suites: Mapping[str, TaskSuite]) -> None:
        self.suites = suites

    def identity(self, tasks: Sequence[Task]) -> str:
        return f"demo:{digest(self._fingerprints(tasks))}"

    def check(self, task: Task) -> None:
        suite = self._suite(task)
        if suite.demo is None or suite.demo_fingerprint is None:
            raise DataError(
                f"Suite {suite.name!r} has no demo data. "
                "Use --data DIR with a folder that mirrors hub ids, or --data hub."
            )

    def splits(self, task: Task) -> dict[str, datasets.Dataset]:
        self.check(task)
        suite = self._suite(task)
        demo = suite.demo
        assert demo is not None
        loaded = {}
        for split in required_splits(task):
            identity = [self._fingerprints([task]), task.dataset, task.config, split]
            table = _table(demo, identity)
            where = f"The demo of suite {suite.name!r}"
            check_schema(task, table.schema, where=where, split=split, rows=len(table))
            check_values(task, table, where=where, split=split)
            loaded[split] = dataset_of(table, fingerprint=digest(identity))
        return loaded

    def _suite(self, task: Task) -> TaskSuite:
        suite = next((suite for suite in self.suites.values() if task in suite.tasks), None)
        if suite is None:
            raise DataError(f"Task {task.name!r} belongs to none of the suites {', '.join(sorted(self.suites))}.")
        return suite

    def _fingerprints(self, tasks: Sequence[Task]) -> dict[str, str]:
        suites = {suite.name: suite for suite in map(self._suite, tasks)}
        return {name: suite.demo_fingerprint() if suite.demo_fingerprint else "" for name, suite in suites.items()}


def _table(demo: Callable[..., Rows], identity: Sequence[Any]) -> pyarrow.Table:
    """The generated rows, cached unless the generator is not importable by name."""
    import pyarrow

    name = getattr(demo, "__qualname__", "")
    make = partial(demo, *identity[1:])
    if getattr(sys.modules.get(demo.__module__), name, None) is not demo:
        return pyarrow.Table.from_pylist(make())
    return cached_table(digest([demo.__module__, name, *identity], length=32), make)
