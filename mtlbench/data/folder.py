"""Data from a folder that mirrors hub ids: ``DIR/nyu-mll/glue/rte/train.parquet``.

Parquet files are read directly: the cache of ``datasets.load_dataset`` depends only on the header of the folder's
README, so a changed file or a second folder would silently yield old data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.api.task import Task
from mtlbench.data.columns import answer_columns, check_schema, check_values
from mtlbench.data.source import Source, dataset_of, required_splits
from mtlbench.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import datasets

    from mtlbench.data.manifest import Manifest


def relative_path(task: Task, split: str) -> str:
    """Path of a split in a folder that mirrors hub ids."""
    return f"{task.dataset}/{task.config or 'default'}/{split}.parquet"


class FolderSource(Source):
    """Parquet files at ``DIR/<data set>/<configuration or default>/<split>.parquet``."""

    name = "folder"

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            parent = next((p for p in folder.resolve().parents if p.is_dir()), Path("/"))
            raise DataError(
                f"There is no data folder {str(folder)!r}; the nearest existing folder is {str(parent)!r}. "
                "Name a folder that mirrors hub ids, or use demo or hub."
            )
        self.folder = folder

    def identity(self, tasks: Sequence[Task]) -> str:
        total = hashlib.sha256()
        for name in sorted({relative_path(task, split) for task in tasks for split in required_splits(task)}):
            with (self.folder / name).open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{name} {content}\n".encode())
        bundle = self._bundle()
        kind = "demo-folder" if bundle is not None and bundle.source == "demo" else "folder"
        return f"{kind}:{total.hexdigest()[:16]}"

    def check(self, task: Task) -> None:
        import pyarrow
        import pyarrow.parquet as parquet

        for split in required_splits(task):
            path = self._path(task, split)
            try:
                file = parquet.ParquetFile(path)
                schema, rows = file.schema_arrow, file.metadata.num_rows
                check_schema(task, schema, where=repr(str(path)), split=split, rows=rows)
                answers = file.read(columns=answer_columns(task))
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{str(path)!r} cannot be read as parquet: {error}. Write the file again.") from error
            check_values(task, answers, where=repr(str(path)), split=split)

    def splits(self, task: Task) -> dict[str, datasets.Dataset]:
        import pyarrow.parquet as parquet

        self.check(task)
        loaded = {}
        for split in required_splits(task):
            path = self._path(task, split)
            table = parquet.ParquetFile(path).read()
            check_values(task, table, where=repr(str(path)), split=split)
            loaded[split] = dataset_of(table, fingerprint=hashlib.sha256(path.read_bytes()).hexdigest()[:16])
        return loaded

    def revisions(self, tasks: Sequence[Task]) -> dict[str, str]:
        """The revisions in the manifest, if the folder belongs to a bundle."""
        bundle = self._bundle()
        known = {} if bundle is None else bundle.datasets
        return {task.dataset: known[task.dataset] for task in tasks if task.dataset in known}

    def _bundle(self) -> Manifest | None:
        """The manifest, if the folder belongs to a bundle."""
        from mtlbench.data import manifest

        parent = self.folder.resolve().parent
        return manifest.read(parent) if (parent / manifest.NAME).is_file() else None

    def _path(self, task: Task, split: str) -> Path:
        path = self.folder / relative_path(task, split)
        if path.is_file():
            return path
        splits = [p.stem for p in path.parent.glob("*.parquet")]
        hint = did_you_mean(split, splits) if splits else "Put it there, or omit the task."
        raise DataError(f"Task {task.name!r} needs {str(path)!r}, which does not exist. {hint}")
