"""Calibration of a table's rows: expected calibration error and Brier score by task, from the stored predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mtlbench.api.study import Calibration, Row, Spread, Table, spread
from mtlbench.results.columns import NumberColumn
from mtlbench.results.formatting import NONE, short_names

LEGEND = (
    "Calibration, mean ± standard deviation over seeds, lower is better. ECE: expected calibration error with 15 bins "
    "of equal width over the probability of the chosen answer (Guo et al. 2017), from 0 to 1. Brier: squared distance "
    "of the probabilities to the right answer, summed over the choices (Brier 1950), from 0 to 2. Probabilities: "
    "softmax over the choices' log-likelihoods, not divided by their lengths, as acc chooses."
)
"""What the columns mean."""
_Number = Callable[[Calibration], float | None]


def calibrated_rows(table: Table) -> list[Row]:
    """The rows that have any calibration."""
    return [row for row in table.rows if row.calibration]


def calibration_columns(table: Table) -> list[NumberColumn]:
    """Both numbers for each task that has them, and the means over these tasks."""
    tasks = [task for task in table.tasks if any(task in c for row in table.rows for c in row.calibration.values())]
    names = dict(zip(table.tasks, short_names(table.tasks), strict=True))
    of: Mapping[str, _Number] = {"ECE": lambda one: one.ece, "Brier": lambda one: one.brier}
    columns = [_column(f"{names[task]} {what}", [task], number) for task in tasks for what, number in of.items()]
    means = [_column(f"mean {what}", tasks, number) for what, number in of.items()] if len(tasks) > 1 else []
    return [*columns, *means]


def _column(name: str, tasks: Sequence[str], number: _Number) -> NumberColumn:
    def text(row: Row) -> str:
        found = _over_seeds(row, tasks, number)
        if found is None:
            return NONE
        return f"{found.mean:.3f}" if found.sd is None else f"{found.mean:.3f} ± {found.sd:.3f}"

    def value(row: Row) -> float | None:
        found = _over_seeds(row, tasks, number)
        return found.mean if found else None

    return NumberColumn(name=name, text=text, value=value)


def _over_seeds(row: Row, tasks: Sequence[str], number: _Number) -> Spread | None:
    """Means over ``tasks`` by seed; seeds that lack one of them are omitted."""
    of_seeds = [[number(found[task]) for task in tasks if task in found] for found in row.calibration.values()]
    whole = [[n for n in numbers if n is not None] for numbers in of_seeds]
    means = [sum(numbers) / len(numbers) for numbers in whole if len(numbers) == len(tasks)]
    return spread(means) if means else None
