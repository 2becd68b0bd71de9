"""Rows from the Hugging Face hub, or from what an earlier run cached of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.api.task import Task
from mtlbench.data.columns import check_schema, check_values
from mtlbench.data.source import Source, wanted_splits
from mtlbench.errors import DataError

if TYPE_CHECKING:
    import datasets

TIMEOUT_S = 5.0
WITHOUT = (
    "Use --data DIR with a folder that mirrors hub ids (DIR/nyu-mll/glue/rte/train.parquet), "
    "or the embedded demo: --model demo --data demo."
)


class HubSource(Source):
    """``datasets.load_dataset`` with the task's data set and configuration."""

    name = "hub"

    def __init__(self) -> None:
        self._proven: set[tuple[str, str | None]] = set()

    def identity(self, tasks: Sequence[Task]) -> str:
        return "hub"

    def check(self, task: Task) -> None:
        """Prove that the data set is cached here or that the hub has it; columns only show in :meth:`splits`."""
        if Path(task.dataset).exists():
            raise DataError(
                f"A folder {task.dataset!r} in the working directory would be read instead of the hub. "
                "Start from another directory, or use --data . if it is the data you want."
            )
        key = (task.dataset, task.config)
        if key in self._proven:
            return
        if not _cached(task):
            _ask_hub(task)
        self._proven.add(key)

    def splits(self, task: Task) -> dict[str, datasets.Dataset]:
        import datasets

        self.check(task)
        where = f"{task.dataset} ({task.config or 'default'}) on the hub"
        try:
            found = datasets.load_dataset(task.dataset, task.config)
        except Exception as error:
            raise DataError(f"Task {task.name!r}: {where} cannot be loaded: {error}. {WITHOUT}") from error
        for split in wanted_splits(task):
            if split not in found:
                raise DataError(f"Task {task.name!r}: {where} has no split {split!r}. It has: {', '.join(found)}.")
            table = found[split].data.table
            check_schema(task, table.schema, where=where, split=split, rows=len(table))
            check_values(task, table, where=where, split=split)
        return {split: found[split] for split in wanted_splits(task)}


def _cached(task: Task) -> bool:
    from huggingface_hub.constants import HF_HOME

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")
    folder = cache / task.dataset.replace("/", "___") / (task.config or "default")
    return next(folder.rglob("dataset_info.json"), None) is not None


def _ask_hub(task: Task) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().dataset_info(task.dataset, timeout=TIMEOUT_S)
    except RepositoryNotFoundError as error:
        raise DataError(
            f"The hub has no data set {task.dataset!r} (task {task.name!r}), or it needs a login. {WITHOUT}"
        ) from error
    except Exception as error:
        raise DataError(
            f"Data set {task.dataset!r} (task {task.name!r}) is not cached here and the hub cannot be reached. "
            f"{WITHOUT}"
        ) from error
