"""Data from a folder that mirrors hub ids: ``DIR/nyu-mll/glue/rte/train.parquet``, or another form of that file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.api.task import Task
from mtlbench.data.columns import answer_columns, check_schema, check_values
from mtlbench.data.files import SplitFiles, find_split, open_files, readable
from mtlbench.data.source import Source, dataset_of, required_splits
from mtlbench.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow

    from mtlbench.data.manifest import Manifest


class FolderSource(Source):
    """``DIR/<data set>/<configuration or default>/<split>.parquet``, or another form of it as in
    :mod:`mtlbench.data.files`."""

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
        for name in sorted({name for task in tasks for name in self.files(task)}):
            total.update(f"{name} {_sha256(self.folder / name)}\n".encode())
        bundle = self._bundle()
        kind = "demo-folder" if bundle is not None and bundle.source == "demo" else "folder"
        return f"{kind}:{total.hexdigest()[:16]}"

    def files(self, task: Task) -> list[str]:
        """The files of a task's splits, relative to the folder.

        Raises:
            DataError: as :func:`~mtlbench.data.files.find_split`.
        """
        found = [find_split(self.folder, task, split) for split in required_splits(task)]
        return [path.relative_to(self.folder).as_posix() for files in found for path in (*files.paths, *files.index)]

    def check(self, task: Task) -> None:
        for split in required_splits(task):
            self._tables(task, split, find_split(self.folder, task, split), columns=answer_columns(task))

    def splits(self, task: Task) -> dict[str, datasets.Dataset]:
        import pyarrow

        loaded = {}
        for split in required_splits(task):
            files = find_split(self.folder, task, split)
            tables = self._tables(task, split, files, columns=None)
            digests = [_sha256(path) for path in files.paths]
            try:
                table = pyarrow.concat_tables(tables)
            except pyarrow.ArrowInvalid as error:
                raise DataError(f"{files.where} have different columns: {error}. Write them again.") from error
            together = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
            loaded[split] = dataset_of(table, fingerprint=together[:16])
        return loaded

    def _tables(
        self, task: Task, split: str, files: SplitFiles, *, columns: Sequence[str] | None
    ) -> list[pyarrow.Table]:
        """The rows of a split, file by file, checked; at least their ``columns``."""
        tables, rows = [], 0
        for file in open_files(files, task):
            where, rows = repr(str(file.path)), rows + file.rows
            last = file.path == files.paths[-1]
            check_schema(task, file.schema, where=where, split=split, rows=file.rows if last and not rows else 1)
            with readable(file.path, files.kind):
                table = file.read(columns)
            check_values(task, table, where=where, split=split)
            tables.append(table)
        return tables

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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
