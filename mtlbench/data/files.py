"""The files of a split in a data folder: one file, shards as on the hub, or what ``save_to_disk`` wrote; as tables.

Files are read directly: the cache of ``datasets.load_dataset`` depends only on the header of the folder's README, so a
changed file or a second folder would silently yield old data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.api.task import Task
from mtlbench.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pyarrow

KINDS = ("parquet", "jsonl", "json", "csv")
"""File name endings that are read."""
_SHARD = re.compile(r"(?P<split>.+)-(?P<at>\d{5})-of-(?P<of>\d{5})\.(?P<kind>\w+)")


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """Where the rows of a split are."""

    kind: str
    """One of :data:`KINDS`, or ``arrow`` for a folder of ``save_to_disk``."""
    paths: tuple[Path, ...]
    """The files with rows, in order."""
    index: tuple[Path, ...] = ()
    """Files that say which these are."""

    @property
    def where(self) -> str:
        """The files, for a message."""
        first = repr(str(self.paths[0]))
        return first if len(self.paths) == 1 else f"{first} and {len(self.paths) - 1} more"


def relative_path(task: Task, split: str) -> str:
    """Path of a split in a folder that mirrors hub ids, where it is one Parquet file."""
    return f"{task.dataset}/{task.config or 'default'}/{split}.parquet"


def find_split(folder: Path, task: Task, split: str) -> SplitFiles:
    """The files of a split; ``<split>.parquet`` where it is there, else the only ones of any other form.

    Raises:
        DataError: there are none, shards are missing, or there are several forms.
    """
    plain = folder / relative_path(task, split)
    if plain.is_file():
        return SplitFiles(kind="parquet", paths=(plain,))
    places = [plain.parent, *([plain.parents[1] / "data", plain.parents[1]] if task.config is None else [])]
    found = [files for place in places for files in _forms(place, split)]
    if len(found) > 1:
        names = ", ".join(files.where for files in found)
        raise DataError(f"Split {split!r} of task {task.name!r} is there in several forms: {names}. Keep one of them.")
    if not found:
        splits = sorted({name for place in places for name in _splits_in(place)})
        hint = did_you_mean(split, splits) if splits else "Put it there, or omit the task."
        raise DataError(
            f"Task {task.name!r} needs {str(plain)!r}, which does not exist, nor does another form of it: "
            f"{split}.jsonl, {split}.json, {split}.csv, shards {split}-00000-of-00002.parquet, or a folder {split} "
            f"that save_to_disk wrote. {hint}"
        )
    return found[0]


def _forms(place: Path, split: str) -> Iterator[SplitFiles]:
    for kind in KINDS:
        if kind != "parquet" and (path := place / f"{split}.{kind}").is_file():
            yield SplitFiles(kind=kind, paths=(path,))
        if shards := _shards(place, split, kind):
            yield SplitFiles(kind=kind, paths=shards)
        if parts := tuple(sorted((place / split).glob(f"*.{kind}"))) if kind == "parquet" else ():
            yield SplitFiles(kind=kind, paths=parts)
    state = place / split / "state.json"
    if state.is_file():
        yield SplitFiles(kind="arrow", paths=_saved(state), index=(state,))


def _shards(place: Path, split: str, kind: str) -> tuple[Path, ...]:
    """``train-00000-of-00003.parquet`` and so on, all of them."""
    matches = {path: _SHARD.fullmatch(path.name) for path in sorted(place.glob(f"{split}-*-of-*.{kind}"))}
    shards = [(path, match) for path, match in matches.items() if match is not None and match["split"] == split]
    if not shards:
        return ()
    counts = {int(match["of"]) for _, match in shards}
    missing = sorted(set(range(max(counts))) - {int(match["at"]) for _, match in shards})
    if len(counts) > 1 or missing:
        what = f"number {missing[0]} of {max(counts)} is missing" if missing else "they are of several divisions"
        raise DataError(
            f"The shards of split {split!r} at {str(place)!r} are not complete: {what}. Download them again."
        )
    return tuple(path for path, _ in shards)


def _saved(state: Path) -> tuple[Path, ...]:
    """The Arrow files of a data set that ``save_to_disk`` wrote."""
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
        names = [str(entry["filename"]) for entry in content["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{str(state)!r} does not list its files: {error}. Save the data set again.") from error
    paths = tuple(state.parent / name for name in names)
    absent = [path for path in paths if path.parent != state.parent or not path.is_file()]
    if absent or not paths or content.get("_indices_data_files"):
        what = f"{str(absent[0])!r}" if absent else "rows in the order that it lists"
        raise DataError(f"{str(state.parent)!r} has not {what}. Save the data set again with save_to_disk.")
    return paths


def _splits_in(place: Path) -> Iterator[str]:
    """Names of splits that a folder has in any form."""
    for path in place.iterdir() if place.is_dir() else ():
        if path.is_dir() and ((path / "state.json").is_file() or any(path.glob("*.parquet"))):
            yield path.name
        elif path.suffix.lstrip(".") in KINDS and path.name != "dataset_dict.json":
            shard = _SHARD.fullmatch(path.name)
            yield shard["split"] if shard else path.stem


@dataclass(frozen=True, kw_only=True)
class FileRows:
    """An opened file of a split."""

    path: Path
    schema: pyarrow.Schema
    rows: int
    read: Callable[[Sequence[str] | None], pyarrow.Table]
    """The rows, with all columns for ``None``; a form that is read as a whole gives all of them anyway."""


def open_files(files: SplitFiles, task: Task) -> Iterator[FileRows]:
    """The files of a split, one after another; Parquet is read when asked for.

    Raises:
        DataError: a file is damaged, or not what its name says. Use what is given inside :func:`readable`.
    """
    import pyarrow

    for path in files.paths:
        with readable(path, files.kind):
            if files.kind == "parquet":
                import pyarrow.parquet as parquet

                file = parquet.ParquetFile(path)
                yield FileRows(path=path, schema=file.schema_arrow, rows=file.metadata.num_rows, read=file.read)
                continue
            if files.kind == "arrow":
                with pyarrow.OSFile(str(path)) as source:
                    table = pyarrow.ipc.open_stream(source).read_all()
            else:
                table = _csv(path, task) if files.kind == "csv" else _json(path, lines=files.kind == "jsonl")
            yield FileRows(path=path, schema=table.schema, rows=len(table), read=partial(_whole, table))


@contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Inside, an error that a damaged file raises becomes one that names the file.

    Raises:
        DataError: naming the file.
    """
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read as {kind}: {error}. Write the file again.") from error


def _whole(table: pyarrow.Table, columns: Sequence[str] | None) -> pyarrow.Table:
    return table


def _csv(path: Path, task: Task) -> pyarrow.Table:
    """Columns have the types of the task: a text may be a number, and ``NA`` is a text."""
    import pyarrow
    from pyarrow import csv

    types: dict[str, Any] = {}
    for name, kind in task.columns.items():
        if kind == "text" or (isinstance(kind, tuple) and isinstance(kind[0], str)):
            types[name] = pyarrow.string()
        elif isinstance(kind, tuple):
            types[name] = pyarrow.int64()
    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=types),
    )


def _json(path: Path, *, lines: bool) -> pyarrow.Table:
    """Rows of JSON lines, or of one list; texts stay texts, whatever they look like."""
    import pyarrow

    content = path.read_text(encoding="utf-8-sig")
    rows: list[Any] = []
    if not lines and content.lstrip().startswith("["):
        try:
            rows = json.loads(content)
        except ValueError as error:
            raise DataError(f"{str(path)!r} is not JSON: {error}. Write the file again.") from error
    else:
        # not splitlines(): texts may hold other line ends than this one
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise DataError(f"{str(path)!r}, line {number} is not JSON: {error}. Repair the line.") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{str(path)!r}, row {number} is not an object with columns: {str(row)[:60]}.")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise DataError(f"{str(path)!r}, column {name!r} has values of several types: {error}.") from error
    return pyarrow.table(columns)
