"""Creation of a bundle: data of tasks as Parquet under hub ids, models with tokenizers, and a manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from mtlbench.api.task import Task
from mtlbench.bundle.models import collect_model, copy_inside
from mtlbench.data import manifest
from mtlbench.data.files import relative_path
from mtlbench.data.folder import FolderSource
from mtlbench.data.source import Source, required_splits
from mtlbench.errors import DataError, RequestError
from mtlbench.files.temporary import atomic_write

_PACKAGES = ("mtlbench", "datasets", "huggingface_hub", "lm_eval", "transformers")


def make(
    folder: Path, *, tasks: Mapping[str, Task], source: Source | None, models: Sequence[str], log: Callable[[str], None]
) -> manifest.Manifest:
    """Write a bundle to ``folder``, which must be new or empty; it appears there only when it is complete.

    Args:
        tasks: Full name to task.
        source: Source of their data.
        models: Embedded backbones, model folders or hub ids.
        log: Receives progress messages.

    Raises:
        DataError, RequestError: something is missing, or a path leads outside; ``folder`` is then unchanged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{str(folder)!r} is not an empty folder. Name a new one for the bundle.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder) as work:
        work.mkdir()
        for name, task in tasks.items():
            assert source is not None
            log(f"data: {name} ({task.dataset} {task.config or 'default'})")
            _collect_rows(task, source, work / "data")
        revisions = {}
        for model in models:
            log(f"model: {model}")
            name, revision = collect_model(model, work / "models")
            revisions[name] = revision
        files, sizes = manifest.measure(work)
        written = manifest.Manifest(
            tasks=list(tasks),
            source=source.name if source else "",
            files=files,
            bytes=sizes,
            datasets=dict(source.revisions(list(tasks.values()))) if source else {},
            models=revisions,
            versions={package: metadata.version(package) for package in _PACKAGES},
        )
        manifest.write(work, written)
    return written


def _collect_rows(task: Task, source: Source, to: Path) -> None:
    """Write the splits of a task as Parquet; files of a folder are copied unchanged, so that cells keep their keys."""
    if isinstance(source, FolderSource):
        source.check(task)
        for name in (name for name in source.files(task) if not (to / name).exists()):
            _make_room(task, name, to)
            copy_inside(source.folder / name, to / name, root=source.folder)
        return
    targets = {split: relative_path(task, split) for split in required_splits(task)}
    missing = {split: name for split, name in targets.items() if not (to / name).exists()}
    if not missing:
        return
    source.check(task)
    rows = source.splits(task)
    for split, name in missing.items():
        import pyarrow.parquet as parquet

        _make_room(task, name, to)
        table = rows[split].with_format("arrow")[:]
        parquet.write_table(table.replace_schema_metadata(None), to / name)


def _make_room(task: Task, name: str, to: Path) -> None:
    """Make the folder of a file of the bundle."""
    if not manifest.is_inside(name):
        raise DataError(f"Task {task.name!r} would be written to {name!r}, outside the bundle. Omit the task.")
    (to / name).parent.mkdir(parents=True, exist_ok=True)
