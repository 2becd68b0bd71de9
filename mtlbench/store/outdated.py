"""Cells that other code answered: found under an earlier key, left out where newer code is asked, set aside, forgotten.

Nothing is deleted here: results that no longer count are renamed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mtlbench.api.cell import Cell
from mtlbench.store.records import Records

FORGOTTEN = "forgotten"
"""Folder of a run folder: ``forgotten/<key>/`` holds all files of a cell that is not shown any more."""


def latest(requests: Sequence[Sequence[Cell]], has_record: Callable[[str], bool]) -> list[Cell]:
    """The cells of all requests, oldest first, each once.

    A cell without a record is left out where a later request asks the same of other code: an author edits a method, and
    what the code before was to answer is not missing any more.
    """
    cells = {cell.key: cell for request in requests for cell in request}
    if len(requests) < 2:
        return list(cells.values())
    newest = {cell.question: cell.key for request in requests for cell in request}
    return [cell for cell in cells.values() if newest[cell.question] == cell.key or has_record(cell.key)]


def as_recorded(cells: Iterable[Cell], records: Records) -> tuple[Cell, ...]:
    """The cells, each under its earlier key where only that has a record, of the same versions of its plugins."""
    known = set(records.names())

    def finished(key: str) -> bool:
        record = records.get(key) if key in known else None
        return record is not None and record.status != "failed"

    return tuple(
        cell.earlier() if known and cell.sources and cell.key not in known and finished(cell.earlier().key) else cell
        for cell in cells
    )


def set_aside(folder: Path, records: Records, key: str) -> bool:
    """Rename the record of a cell and its outputs to ``<key>.again-<n>``; the caller holds the cell's claim."""
    if not records.has(key):
        return False
    number = 1
    while (records.path / f"{key}.again-{number}.json").exists():
        number += 1
    new = f"{key}.again-{number}"
    for path in _outputs(folder, key):
        path.rename(path.with_name(path.name.replace(key, new, 1)))
    _withdraw(records, key, to=records.path / f"{new}.json")
    return True


def forget(folder: Path, records: Records, key: str) -> None:
    """Move the record of a cell and its outputs to :data:`FORGOTTEN`; the caller holds the cell's claim."""
    remember(folder, key)
    target = folder / FORGOTTEN / key
    target.mkdir(parents=True)
    for path in _outputs(folder, key):
        path.rename(target / f"{path.parent.name}{path.suffix}")
    _withdraw(records, key, to=target / "record.json")


def remember(folder: Path, key: str) -> None:
    """Count the cell again, because it is asked for again; what was forgotten stays as ``<key>.<n>``."""
    old, number = folder / FORGOTTEN / key, 1
    if old.is_dir():
        while (new := old.with_name(f"{key}.{number}")).exists():
            number += 1
        old.rename(new)


def forgotten(folder: Path) -> frozenset[str]:
    """Keys of the cells that were forgotten and not asked for since."""
    try:
        return frozenset(path.name for path in (folder / FORGOTTEN).iterdir())
    except FileNotFoundError:
        return frozenset()


def _outputs(folder: Path, key: str) -> list[Path]:
    paths = (folder / "samples" / f"{key}.parquet", folder / "steps" / f"{key}.jsonl", folder / "adapters" / key)
    return [path for path in paths if path.exists()]


def _withdraw(records: Records, key: str, *, to: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        # First, so that dying in between does not look like a record deleted by hand.
        (records.published / key).unlink()
    with contextlib.suppress(FileNotFoundError):
        records.file(key).rename(to)
