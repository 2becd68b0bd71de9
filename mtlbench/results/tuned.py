"""Rows with tuned settings: checked against the searches they name, and put beside the defaults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mtlbench.api.cell import Cell, canonical
from mtlbench.api.study import Row, Table
from mtlbench.api.tuning import STUDY, TunedMethod
from mtlbench.results.columns import NumberColumn
from mtlbench.results.formatting import NONE, points
from mtlbench.results.rows import grouped
from mtlbench.text import one_line


@dataclass(frozen=True, kw_only=True)
class TunedCells:
    """The cells of a study whose settings come from a search."""

    by_cell: Mapping[int, TunedMethod]
    """Identity of a cell to its search."""
    refused: Mapping[int, str]
    """Identity of a cell that claims a search to the reason why its result is not shown."""
    searches: Sequence[TunedMethod]


def tuned_cells(cells: Iterable[Cell], searches: Sequence[TunedMethod]) -> TunedCells:
    """Each cell that names a study with the search of its method there: a result counts as tuned only with it."""
    by_cell: dict[int, TunedMethod] = {}
    refused: dict[int, str] = {}
    for cell in cells:
        if not cell.protocol.tuning.startswith(STUDY):
            continue
        study = cell.protocol.tuning.removeprefix(STUDY)
        same = [one for one in searches if one.study == study and one.method == cell.method]
        found = next((one for one in same if one.winner and dict(one.settings) == dict(cell.settings)), None)
        if found is not None:
            by_cell[id(cell)] = found
            continue
        name = (
            f"{one_line(cell.variant)} seed {cell.seed} is left out: its settings are said to come from study {study}"
        )
        refused[id(cell)] = (
            f"{name}, which chose others for {one_line(same[0].variant)}."
            if same
            else f"{name}, which is not in studies/. Copy it there, or run the command with --tune again."
        )
    return TunedCells(by_cell=by_cell, refused=refused, searches=searches)


def comparable(cells: Sequence[Cell], tuned: TunedCells) -> list[list[Cell]]:
    """Cells in groups that share a table: those that differ in nothing but whether their settings were tuned.

    Rows of two studies were not tuned with equal effort, so each study has a table of its own, with the defaults.
    """
    groups = []
    for group in grouped(cells, lambda cell: canonical([cell.model, list(cell.tasks), _untuned(cell, tuned)])):
        studies = sorted({tuned.by_cell[id(cell)].study for cell in group if id(cell) in tuned.by_cell})
        defaults = [cell for cell in group if id(cell) not in tuned.by_cell]
        for study in studies:
            of_study = (cell for cell in group if id(cell) in tuned.by_cell and tuned.by_cell[id(cell)].study == study)
            groups.append([*defaults, *of_study])
        groups += [] if studies else [defaults]
    return groups


def representative(cells: Sequence[Cell], tuned: TunedCells) -> Cell:
    """The cell whose protocol a table shows: a tuned one where there is one."""
    return next((cell for cell in cells if id(cell) in tuned.by_cell), cells[0])


def searches_of(cell: Cell, tuned: TunedCells) -> tuple[TunedMethod, ...]:
    """The searches behind the table of ``cell``, its representative. Where no row is tuned, as the defaults won
    everywhere, they are those with its tasks, model and protocol; of several studies, that with the most trials."""
    if id(cell) in tuned.by_cell:
        return tuple(one for one in tuned.searches if one.study == tuned.by_cell[id(cell)].study)
    same = {"tasks": list(cell.tasks), "model": cell.weights or cell.model, "protocol": cell.protocol.identity()}
    fitting = [one for one in tuned.searches if same.items() <= one.effort.items()]
    best = max(fitting, key=lambda one: len(one.trials), default=None)
    return tuple(one for one in fitting if best is not None and one.study == best.study)


def with_default_winners(rows: Sequence[Row], searches: Sequence[TunedMethod]) -> list[Row]:
    """The rows, with the search of those whose default settings won it."""
    won = {one.variant: one for one in searches if one.winner is not None and not one.winner.settings}
    return [row if row.tuned or row.label not in won else replace(row, tuned=won[row.label]) for row in rows]


def _untuned(cell: Cell, tuned: TunedCells) -> str:
    protocol = replace(cell.protocol, tuning="none") if id(cell) in tuned.by_cell else cell.protocol
    return protocol.hash()


def tuning_text(row: Row, table: Table) -> str:
    """How a row got its settings: ``default``, ``default (won)``, or what the search chose."""
    if row.tuned is None:
        return "default" if any(row.variant == one.variant for one in table.searches) else NONE
    chosen = row.tuned.winner.settings if row.tuned.winner else {}
    return ", ".join(f"{name}={value}" for name, value in sorted(chosen.items())) or "default (won)"


def tuning_columns(table: Table) -> list[NumberColumn]:
    """What the search found, and by how much it moved the row; none where no row was tuned."""
    if not table.searches:
        return []
    return [
        NumberColumn(name="settings", text=lambda row: tuning_text(row, table), value=lambda row: _rate(row)),
        NumberColumn(name="held-out score", text=lambda row: _number(_held_out(row), "{:.2f}"), value=_held_out),
        NumberColumn(name="moved by tuning", text=_moved, value=lambda row: row.moved.points if row.moved else None),
        NumberColumn(name="trials", text=lambda row: _number(_trials(row), "{:.0f}"), value=_trials),
        NumberColumn(
            name="searched",
            text=lambda row: ", ".join(sorted(row.tuned.fields)) if row.tuned else NONE,
            value=lambda row: len(row.tuned.fields) if row.tuned else None,
        ),
    ]


def tuning_legend(table: Table) -> str:
    """What the columns of :func:`tuning_columns` mean, and the effort that all methods had."""
    if not table.searches:
        return ""
    effort = table.searches[0].effort
    low, high = effort.get("rates", (None, None))
    text = f"Tuning, study {table.searches[0].study}"
    if low is not None:
        text += (
            f": each method had {effort['trials']} trials, its default settings among them, with learning rates from "
            f"{low:g} to {high:g}, scored on {effort['share']:.0%} of the training rows that it did not train on; the "
            f"best {effort['finalists']} were run on {effort['repeats']} seeds, and the held-out score is the mean of "
            "these for the one chosen"
        )
    return f"{text}. Moved by tuning: tuned minus default in points, with its 95 % interval where there are two seeds."


def tuning_notes(searches: Sequence[TunedMethod]) -> Iterator[str]:
    """Winners at the end of the searched range, and methods that searched more than others."""
    for one in searches:
        rates = sorted(trial.learning_rate for trial in one.trials)
        best = one.winner
        if best is None:
            yield f"{one.variant} has no tuned row: no trial has scores on every seed."
        elif best.settings and len(rates) > 1 and best.learning_rate in (rates[0], rates[-1]):
            end = "lowest" if best.learning_rate == rates[0] else "highest"
            yield f"{one.variant}: the {end} learning rate of its trials won, so a better one may lie beyond."
    most = max((len(one.fields) for one in searches), default=1)
    if most > 1:
        counts = "; ".join(f"{one.variant} {len(one.fields)} ({', '.join(sorted(one.fields))})" for one in searches)
        yield f"The methods searched different fields with the same number of trials: {counts}."


def _rate(row: Row) -> float | None:
    return row.tuned.winner.learning_rate if row.tuned and row.tuned.winner else None


def _held_out(row: Row) -> float | None:
    return row.tuned.winner.mean if row.tuned and row.tuned.winner else None


def _trials(row: Row) -> float | None:
    return float(len(row.tuned.trials)) if row.tuned else None


def _moved(row: Row) -> str:
    if row.moved is None:
        return NONE
    within = row.moved.interval
    return points(row.moved.points) + (f" [{points(within.low)}, {points(within.high)}]" if within else "")


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)
