"""The results of one or several run folders as one: every cell once, and only what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.api.tuning import TunedMethod
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.store.folder import RunFolder
from mtlbench.store.records import disagree
from mtlbench.text import count, one_line

KEY_LENGTH = 6
"""Fewest characters by which a cell's key is named."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of the results is shown; empty shows everything."""

    methods: tuple[str, ...] = ()
    """Methods, variants or starts of keys: only their cells."""
    tasks: tuple[str, ...] = ()
    """Suites or full names of tasks: only cells that are scored on nothing else."""
    exclude: tuple[str, ...] = ()
    """Methods, variants or starts of keys: not their cells."""

    def keeps(self, cell: Cell) -> bool:
        """Whether the cell is shown."""
        return (
            (not self.methods or any(_called(cell, name) for name in self.methods))
            and not any(_called(cell, name) for name in self.exclude)
            and (not self.tasks or all(set(_names(task)) & set(self.tasks) for task in cell.scored))
        )


@dataclass(frozen=True, kw_only=True)
class Results:
    """Records of run folders, each cell once."""

    folders: tuple[RunFolder, ...]
    records: Mapping[str, Record]
    """By key of the cell."""
    homes: Mapping[str, RunFolder]
    """Key of each record to its folder."""
    expected: tuple[Cell, ...]
    notes: tuple[str, ...] = ()
    """What was left out or found twice."""
    all_records: Mapping[Path, Mapping[str, Record]] = field(default_factory=dict, repr=False)

    @cached_property
    def searches(self) -> tuple[tuple[TunedMethod, ...], tuple[str, ...]]:
        """All searches, and a sentence for each that cannot be read."""
        read = [folder.searches() for folder in self.folders]
        found = {(one.study, one.variant): one for searches, _ in read for one in searches}
        return tuple(found.values()), tuple(problem for _, problems in read for problem in problems)

    def problems(self) -> list[str]:
        """Problems with the files, as of :meth:`~mtlbench.store.folder.RunFolder.problems`."""
        several = len(self.folders) > 1
        return [
            f"{folder.path}: {problem}" if several else problem
            for folder in self.folders
            for problem in folder.problems(self.all_records[folder.path])
        ]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Cells with a record, then those without."""
        return (*(record.cell for record in self.records.values()), *self.expected)

    def home(self, key: str) -> RunFolder:
        """The folder that holds the files of a cell."""
        return self.homes.get(key, self.folders[0])

    def steps(self, key: str) -> list[dict[str, object]]:
        """The step log of a cell."""
        return self.home(key).steps(key)

    def checked_samples(self, record: Record) -> bytes | None:
        """The predictions of a cell, as of :meth:`~mtlbench.store.folder.RunFolder.checked_samples`."""
        return self.home(record.key).checked_samples(record)


def read_results(folders: Sequence[RunFolder], *, selection: Selection | None = None) -> Results:
    """The results of all ``folders`` together.

    A cell that several folders hold counts once: seeds that are counted twice would make differences look certain.

    Raises:
        RequestError: a folder is named twice, two folders disagree about a cell or about the weights of a backbone, or
            the selection names what is not there or leaves nothing.
    """
    paths = [folder.path.resolve() for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise RequestError(f"The run folder {str(folder.path)!r} is named twice. Name each folder once.")
    read = {folder.path: folder.records() for folder in folders}
    found: dict[str, tuple[Record, RunFolder]] = {}
    repeated, left = 0, list[Cell]()
    identity_of: Callable[[Cell], str] = _identity if len(folders) > 1 else lambda cell: cell.key
    for folder in folders:
        for record in read[folder.path].values():
            if selection is not None and not selection.keeps(record.cell):
                left.append(record.cell)
                continue
            identity = identity_of(record.cell)
            if identity not in found:
                found[identity] = (record, folder)
                continue
            other, home = found[identity]
            _check_agree(other, record, home, folder)
            repeated += 1
            if other.status != "ok" and record.status == "ok":
                found[identity] = (record, folder)
    _check_backbones(found.values())
    expected = {identity_of(cell): cell for folder in folders for cell in folder.expected()}
    notes = [f"{count(repeated, 'cell')} found in several of the folders: each counts once."] if repeated else []
    if selection is not None:
        left += [cell for cell in expected.values() if not selection.keeps(cell)]
        shown = [*(record.cell for record, _ in found.values()), *filter(selection.keeps, expected.values())]
        notes += _selection_notes(selection, shown=shown, left=left)
    return Results(
        folders=tuple(folders),
        records={record.key: record for record, _ in found.values()},
        homes={record.key: folder for record, folder in found.values()},
        expected=tuple(
            cell
            for identity, cell in expected.items()
            if identity not in found and (selection is None or selection.keeps(cell))
        ),
        notes=tuple(notes),
        all_records=read,
    )


def _identity(cell: Cell) -> str:
    """Equal for one cell on machines that keep the backbone at different places."""
    return replace(cell, model=cell.weights).key if cell.weights and Path(cell.model).is_absolute() else cell.key


def _check_agree(one: Record, other: Record, home: RunFolder, folder: RunFolder) -> None:
    if disagree(one, other):
        cell = one.cell
        raise RequestError(
            f"{home.path} and {folder.path} hold different scores of one cell: {cell.variant}, seed {cell.seed}, key "
            f"{one.key}. A seed counts once: name one of the folders, or leave the cell out with "
            f"--exclude {one.key[:12]}."
        )


def _check_backbones(found: Iterable[tuple[Record, RunFolder]]) -> None:
    """Refuse rows of one table whose frozen weights differ between folders: a hub id does not say which they are."""
    seen: dict[tuple[object, ...], tuple[str, RunFolder]] = {}
    for record, folder in found:
        fingerprint = record.provenance.get("backbone_fingerprint")
        if record.status != "ok" or fingerprint is None:
            continue
        cell = record.cell
        table = (cell.weights or cell.model, cell.tasks, cell.protocol.hash(), record.provenance.get("dtype"))
        other, home = seen.setdefault(table, (fingerprint, folder))
        if other != fingerprint and home is not folder:
            raise RequestError(
                f"The backbone {cell.model!r} has other weights in {home.path} ({other}) than in {folder.path} "
                f"({fingerprint}), so their rows must not share a table. Report each folder by itself, or run both "
                "with the same revision of the model."
            )


def _selection_notes(selection: Selection, *, shown: Sequence[Cell], left: Sequence[Cell]) -> Iterator[str]:
    """Check the names of a selection, and say what it leaves out."""
    cells = [*shown, *left]
    for option in ("methods", "exclude"):
        for name in getattr(selection, option):
            if not any(_called(cell, name) for cell in cells):
                known = {known for cell in cells for known in (cell.variant, cell.method)}
                raise RequestError(f"--{option}: no cell here is called {name!r}. {did_you_mean(name, known)}")
    tasks = {name for cell in cells for task in cell.scored for name in _names(task)}
    for name in selection.tasks:
        if name not in tasks:
            raise RequestError(f"--tasks: no cell here is scored on {name!r}. {did_you_mean(name, tasks)}")
    if not shown:
        raise RequestError(
            "Nothing is left to show: no cell fits --methods, --tasks and --exclude. A cell is shown for --tasks if it "
            "is scored on nothing else."
        )
    if left:
        variants = ", ".join(dict.fromkeys(one_line(cell.variant) for cell in left))
        yield f"Left out on request: {count(len({cell.key for cell in left}), 'cell')} of {variants}."


def _called(cell: Cell, name: str) -> bool:
    return name in (cell.variant, cell.method) or (len(name) >= KEY_LENGTH and cell.key.startswith(name))


def _names(task: str) -> tuple[str, str]:
    """The full name of a task and its suite."""
    return task, task.partition("/")[0]
