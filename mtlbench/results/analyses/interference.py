"""What a balancer did in training, by row: weights of tasks, and how far the gradients of tasks agreed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from mtlbench.api.record import BalanceNote
from mtlbench.api.study import Row, Table
from mtlbench.results.formatting import NONE, short_names

BALANCE_LEGEND = (
    "mean over seeds of the mean weight over the steps with rows of the task, and of the mean cosine between the "
    "gradients of two tasks, over the parameters that both train; below 0 they conflict"
)
"""What the numbers of a balance are."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Means over the seeds of a row; ``None`` where no step had what they are made of."""

    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    weights: tuple[float | None, ...]
    """By task."""
    cosines: tuple[tuple[float | None, ...], ...]
    """By task and task; empty where the balancer weighs losses."""

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and lines of a table: a line for each task."""
        names = short_names(self.tasks)
        of_tasks = self.cosines or tuple(() for _ in names)
        header = ["task", *(names if self.cosines else []), "weight"]
        lines = [
            [name, *map(_text, cosines), _text(weight)]
            for name, cosines, weight in zip(names, of_tasks, self.weights, strict=True)
        ]
        return header, lines


def balance_of(row: Row, tasks: Sequence[str]) -> Balance | None:
    """What the balancer did in the cells of ``row``; ``None`` where none had one that trained."""
    notes = {r.cell.seed: r.notes["balance"] for r in row.records if r.status == "ok" and "balance" in r.notes}
    if not notes:
        return None
    measured = any("cosines" in note for note in notes.values())

    def mean(of: Callable[[BalanceNote], float | None]) -> float | None:
        values = [value for note in notes.values() if (value := of(note)) is not None]
        return fmean(values) if values else None

    def cosine(one: str, other: str) -> float | None:
        return mean(lambda note: note.get("cosines", {}).get(one, {}).get(other))

    return Balance(
        seeds=tuple(notes),
        tasks=tuple(tasks),
        weights=tuple(mean(lambda note, task=task: note["weights"].get(task)) for task in tasks),  # type: ignore[misc]
        cosines=tuple(tuple(cosine(one, other) for other in tasks) for one in tasks) if measured else (),
    )


def balances(table: Table) -> dict[str, Balance]:
    """Label of a row to its balance, of those that have one."""
    found = {row.label: balance_of(row, table.tasks) for row in table.rows}
    return {label: balance for label, balance in found.items() if balance is not None}


def _text(value: float | None) -> str:
    return NONE if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
