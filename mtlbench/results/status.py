"""Lines of text for ``mtlbench status`` and ``mtlbench plan``; pure functions of plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.planning.sweeps import SWEPT
from mtlbench.store.claims import InFlight
from mtlbench.text import one_line, sentences, tasks_label

_SHOWN = ("running", "failed", "skipped", "missing", "done")


def status_lines(cells: Sequence[Cell], records: Mapping[str, Record], running: Iterable[InFlight] = ()) -> list[str]:
    """One line of counts, then one line per cell: running cells first, finished ones last.

    ``cells`` are those of all requests, ``records`` is by key. A record takes precedence over a stale claim.
    """
    wanted = {cell.key: cell for cell in cells}
    claims = {claim.key: claim for claim in running}
    states = [_state(records.get(key), claims.get(key)) for key in wanted]
    lines = [_counted(wanted, states, order=_SHOWN), *_listed(wanted, states, order=_SHOWN)]
    extra = sum(key not in wanted for key in records)
    return [*lines, f"records of cells that no request here names: {extra}"] if extra else lines


def plan_lines(cells: Sequence[Cell], records: Mapping[str, Record], *, folder: Path) -> list[str]:
    """What a run into ``folder`` would do with each cell: run it, or use the record in the folder."""
    wanted = {cell.key: cell for cell in cells}
    states = [_state(records.get(key), None) for key in wanted]
    planned = [("to run" if state == "missing" else state, detail) for state, detail in states]
    order = ("to run", "failed", "skipped", "done")
    return [f"{_counted(wanted, planned, order=order)} in {folder}", *_listed(wanted, planned, order=order)]


def earlier_lines(cells: Iterable[Cell], records: Mapping[str, Record]) -> list[str]:
    """A line on records under keys of earlier versions of mtlbench, which do not say which source made them."""
    cells = list(cells)
    count = sum(not cell.sources and cell.key in records for cell in cells)
    if not count:
        return []
    return [
        f"records of an earlier version of mtlbench: {count} of {len(cells)} cells. Their keys hold the versions of "
        "the plugins, not their source: a record counts where these are installed now. To compute such cells again "
        "with the source of now: mtlbench run ... --again METHODS"
    ]


def _counted(cells: Mapping[str, Cell], states: Sequence[tuple[str, str]], *, order: Sequence[str]) -> str:
    names = [state for state, _ in states]
    counts = ", ".join(f"{names.count(state)} {state}" for state in order if state in names)
    return f"{len(cells)} cell{'' if len(cells) == 1 else 's'}{': ' + counts if counts else ''}"


def _listed(cells: Mapping[str, Cell], states: Sequence[tuple[str, str]], *, order: Sequence[str]) -> Iterator[str]:
    names = _names(list(cells.values()))
    width = max(map(len, names), default=0)
    lines = sorted(zip(states, names, strict=True), key=lambda line: order.index(line[0][0]))
    for (state, detail), name in lines:
        yield f"{state:<7}  {name:<{width}}  {detail}".rstrip()


def _state(record: Record | None, claim: InFlight | None) -> tuple[str, str]:
    if record is not None:
        return _recorded(record)
    if claim is None:
        return "missing", ""
    return "running", _progress(claim)


def _recorded(record: Record) -> tuple[str, str]:
    if record.status == "ok":
        average = f"average {record.average:.1f}" if record.average is not None else "no scores"
        return "done", f"{average}, {record.costs.total_seconds:.0f} s" if record.costs else average
    if record.failure is None:
        return record.status, "no reason was recorded"
    why = record.failure
    return record.status, sentences(f"{why.kind}: {one_line(why.message)}", one_line(why.next_step))


def _progress(claim: InFlight) -> str:
    if claim.step is None:
        return f"no step yet, {one_line(claim.owner)}"
    total = f" of {claim.total_steps}" if claim.total_steps else ""
    loss = f", loss {claim.loss:.4g}" if claim.loss is not None else ""
    return f"step {claim.step}{total}{loss}, {one_line(claim.owner)}"


def _names(cells: Sequence[Cell]) -> list[str]:
    """Variant and seed, with the other fields that distinguish the cells."""
    tasks, models = len({cell.tasks for cell in cells}) > 1, len({cell.model for cell in cells}) > 1
    protocols = len({cell.protocol.hash() for cell in cells}) > 1
    swept = [name for name in SWEPT[1:] if len({getattr(cell.protocol, name) for cell in cells}) > 1]
    names = []
    for cell in cells:
        parts = [f"{one_line(cell.variant)} seed {cell.seed}"]
        parts += [f"tasks {tasks_label(cell.tasks)}"] if tasks else []
        parts += [f"model {one_line(cell.model)}"] if models else []
        parts += [f"{name}={getattr(cell.protocol, name)}" for name in swept]
        parts += [f"protocol {cell.protocol.hash()}"] if protocols else []
        names.append(", ".join(parts))
    several = {name for name, count in Counter(names).items() if count > 1}
    versions = [one_line(" ".join(f"{k} {v}" for k, v in sorted(cell.plugins.items()))) for cell in cells]
    names = [f"{n}, {v}" if n in several else n for n, v in zip(names, versions, strict=True)]
    several = {name for name, count in Counter(names).items() if count > 1}
    return [f"{n}, {_source(cell)}" if n in several else n for n, cell in zip(names, cells, strict=True)]


def _source(cell: Cell) -> str:
    said = [digest for name, digest in sorted(cell.sources.items()) if name.startswith("methods/")]
    return f"source {' '.join(digest[:8] for digest in said) or 'unknown'}"
