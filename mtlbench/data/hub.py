"""Data from the Hugging Face hub or its local cache."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.api.cell import digest
from mtlbench.api.task import Task
from mtlbench.data.columns import check_schema, check_values
from mtlbench.data.source import Source, required_splits
from mtlbench.errors import DataError

if TYPE_CHECKING:
    import datasets

TIMEOUT_S = 5.0
WITHOUT = (
    "Use --data DIR with a folder that mirrors hub ids (DIR/nyu-mll/glue/rte/train.parquet), "
    "or the embedded demo: --model demo --data demo."
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubSource(Source):
    """``datasets.load_dataset`` with the task's data set and configuration."""

    name = "hub"

    def __init__(self) -> None:
        self._revisions: dict[tuple[str, str | None], str] = {}
        """Commit by data set and configuration; empty where unknown."""

    def identity(self, tasks: Sequence[Task]) -> str:
        for task in tasks:
            self.check(task)
        return f"hub:{digest(sorted({f'{t.dataset} {self._revisions[t.dataset, t.config]}' for t in tasks}))}"

    def revisions(self, tasks: Sequence[Task]) -> dict[str, str]:
        for task in tasks:
            self.check(task)
        return {task.dataset: self._revisions[task.dataset, task.config] for task in tasks}

    def check(self, task: Task) -> None:
        """Check that the data set is cached or on the hub, and fix its revision: the newest cached one, else that of
        the hub. Columns are checked in :meth:`splits`."""
        if Path(task.dataset).exists():
            raise DataError(
                f"A folder {task.dataset!r} in the working directory would be read instead of the hub. "
                "Start from another directory, or use --data . if you want that data."
            )
        key = (task.dataset, task.config)
        if key not in self._revisions:
            self._revisions[key] = _cached_revision(task) or _hub_revision(task)

    def splits(self, task: Task) -> dict[str, datasets.Dataset]:
        import datasets

        self.check(task)
        where = f"{task.dataset} ({task.config or 'default'}) on the hub"
        try:
            revision = self._revisions[task.dataset, task.config]
            dataset = datasets.load_dataset(
                task.dataset, task.config, revision=revision if _COMMIT.fullmatch(revision) else None
            )
        except Exception as error:
            raise DataError(f"Task {task.name!r}: {where} cannot be loaded: {error}. {WITHOUT}") from error
        loaded = {Path(file["filename"]).parent.name for rows in dataset.values() for file in rows.cache_files}
        if _COMMIT.fullmatch(revision) and loaded - {revision}:
            raise DataError(
                f"Task {task.name!r}: revision {revision} of {where} was expected, but {', '.join(loaded)} was loaded. "
                "Start the same command again."
            )
        for split in required_splits(task):
            if split not in dataset:
                raise DataError(f"Task {task.name!r}: {where} has no split {split!r}. It has: {', '.join(dataset)}.")
            table = dataset[split].data.table
            check_schema(task, table.schema, where=where, split=split, rows=len(table))
            check_values(task, table, where=where, split=split)
        return {split: dataset[split] for split in required_splits(task)}


def _cached_revision(task: Task) -> str:
    """The most recently cached revision, which ``datasets`` would use; empty if there is none."""
    from huggingface_hub.constants import HF_HOME

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")
    *owner, name = task.dataset.split("/")
    folder = cache / "___".join([*owner, _snake(name)]) / (task.config or "default")
    cached = sorted(folder.glob("*/*/dataset_info.json"), key=lambda path: path.parent.stat().st_mtime)
    return cached[-1].parent.name if cached else ""


def _snake(name: str) -> str:
    """Name of a cache folder as by ``datasets.naming.camelcase_to_snakecase``, without loading ``datasets``."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", name).lower()


def _hub_revision(task: Task) -> str:
    """The current commit on the hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return HfApi().dataset_info(task.dataset, timeout=TIMEOUT_S).sha or ""
    except RepositoryNotFoundError as error:
        raise DataError(
            f"The hub has no data set {task.dataset!r} (task {task.name!r}), or it needs a login. {WITHOUT}"
        ) from error
    except Exception as error:
        raise DataError(
            f"Data set {task.dataset!r} (task {task.name!r}) is not cached here and the hub cannot be reached. "
            f"{WITHOUT}"
        ) from error
