"""Comparison of a cell's record with that of running it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.errors import RequestError, StoreError
from mtlbench.planning.plan import resolve_tasks
from mtlbench.planning.sources import sources_of
from mtlbench.plugins import offer_of
from mtlbench.store import RunFolder
from mtlbench.text import one_line

GROUPS = ("outcome", "scores", "losses", "guards", "notes", "costs", "environment")
_TIMES = ("seconds", "tokens_per_second", "peak_memory")
_PER_RUN = ("pid", "started", "finished")
"""Provenance that differs in every run."""


@dataclass(frozen=True, kw_only=True)
class FoundRecord:
    """A record and the run folder that holds it."""

    folder: RunFolder
    record: Record


@dataclass(frozen=True, kw_only=True)
class FieldDifference:
    """One field, before and now."""

    group: str
    """One of :data:`GROUPS`."""
    name: str
    before: Any
    after: Any

    @property
    def same(self) -> bool:
        return bool(self.before == self.after)

    @property
    def size(self) -> float | None:
        """Absolute difference of two numbers; ``None`` for other values."""
        numbers = [v for v in (self.before, self.after) if isinstance(v, int | float) and not isinstance(v, bool)]
        return abs(numbers[0] - numbers[1]) if len(numbers) == 2 else None


def find_record(path: Path, key: str | None) -> FoundRecord:
    """The record at ``path``, or the one of a run folder whose key begins with ``key``.

    Raises:
        RequestError: there is no such record, or several.
    """
    if path.is_file():
        folder, key = RunFolder(path.parent.parent), path.stem
    elif path.is_dir() and (path / "records").is_dir():
        if key is None:
            raise RequestError(f"{str(path)!r} is a run folder: also give the start of a cell's key.")
        folder = RunFolder(path)
    else:
        raise RequestError(f"{str(path)!r} is neither a record nor a run folder. Name records/<key>.json of a run.")
    keys = [stem.stem for stem in sorted((folder.path / "records").glob(f"{key}*.json")) if "." not in stem.stem]
    if len(keys) != 1:
        known = f"{len(keys)} do" if keys else "none does"
        raise RequestError(f"No single record in {str(folder.path)!r} has a key that begins with {key!r}: {known}.")
    record = folder.record(keys[0])
    if record is None:
        raise StoreError(f"The record {keys[0]} in {str(folder.path)!r} is damaged; its copy is in quarantine/.")
    return FoundRecord(folder=folder, record=record)


def data_source(found: FoundRecord) -> str:
    """Where the rows came from: what the command said that the record's folder remembers, or what the cell says.

    Raises:
        RequestError: neither does.
    """
    for request in reversed(found.folder.requests()):
        if any(Cell.from_json(cell).key == found.record.key for cell in request["cells"]):
            return str(request["words"]["data"])
    data = found.record.cell.protocol.data
    first = data.partition(":")[0]
    if first in ("demo", "hub"):
        return first
    raise RequestError(f"The data came from a folder ({data}) whose path was not recorded: give it with --data.")


def cell_now(cell: Cell) -> Cell:
    """The cell with the versions and the source of the plugins that are installed now."""
    tasks = (*cell.tasks, *cell.protocol.probe_tasks)
    names = [("methods", name) for name in cell.method.split("+")]
    names += [("tasks", name) for name in dict.fromkeys(task.partition("/")[0] for task in tasks)]
    owners = [offer_of(group, name) for group, name in names]
    now = replace(cell, plugins={owner.distribution: owner.version for owner in owners})
    if not cell.sources:
        return now
    by_name = resolve_tasks(",".join(tasks))[0]
    return replace(now, sources=sources_of(cell.method, by_name, balance=cell.protocol.balance))


def differences(
    before: Record, after: Record, *, steps: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]
) -> list[FieldDifference]:
    """Every field of both records and every logged loss, equal or not, sorted by group."""
    one, other = (_flat(record, lines) for record, lines in zip((before, after), steps, strict=True))
    names = dict.fromkeys([*one, *other])
    fields = [
        FieldDifference(group=group, name=name, before=one.get((group, name)), after=other.get((group, name)))
        for group, name in names
    ]
    return sorted(fields, key=lambda difference: GROUPS.index(difference.group))


def scores_differ(fields: Sequence[FieldDifference], *, tolerance: float) -> bool:
    """Whether the outcome differs, or a score by more than ``tolerance`` points."""
    for difference in fields:
        if difference.same or difference.group not in ("outcome", "scores"):
            continue
        if difference.size is None or difference.size > tolerance:
            return True
    return False


def lines(fields: Sequence[FieldDifference]) -> Iterator[str]:
    """Every field that differs, and for each group their number."""
    for group in GROUPS:
        mine = [difference for difference in fields if difference.group == group]
        if not mine:
            continue
        other = [difference for difference in mine if not difference.same]
        number = "1 field" if len(mine) == 1 else f"{len(mine)} fields"
        yield f"{group}: {number}, {len(other) or 'none'} differ{'s' if len(other) == 1 else ''}"
        for difference in other:
            apart = "" if difference.size is None else f"  (apart {difference.size:.3g})"
            yield f"  {difference.name}: {one_line(str(difference.before))} -> {one_line(str(difference.after))}{apart}"


def _flat(record: Record, steps: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    flat: dict[tuple[str, str], Any] = {("outcome", "status"): record.status}
    if record.failure:
        flat["outcome", "reason"] = f"{record.failure.kind}: {record.failure.message}"
    for task, score in record.scores.items():
        flat["scores", task] = score.score
        flat.update({("scores", f"{task} {name}"): 100 * value for name, value in score.metrics.items()})
        flat["scores", f"{task} rows"] = score.rows
    for task, probe in record.probe.items():
        flat["scores", f"{task} before training"] = probe.before.score
        flat["scores", f"{task} after training"] = probe.after.score if probe.after else None
    for line in steps:
        if "step" in line:
            flat["losses", f"step {line['step']}"] = line["loss"]
    flat.update({("guards", name): held for name, held in record.guards.items()})
    flat.update({("notes", name): value for name, value in record.notes.items()})
    for name, value in (asdict(record.costs) if record.costs else {}).items():
        if not any(word in name for word in _TIMES):
            flat["costs", name] = value
    for name, value in record.provenance.items():
        if isinstance(value, Mapping):
            flat.update({("environment", f"{name} {inner}"): v for inner, v in value.items()})
        elif name not in _PER_RUN:
            flat["environment", name] = value
    flat.update({("environment", f"plugin {name}"): version for name, version in record.cell.plugins.items()})
    flat.update({("environment", f"source {name}"): said for name, said in record.cell.sources.items()})
    return flat
