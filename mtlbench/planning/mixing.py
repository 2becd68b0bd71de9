"""How tasks of different sizes share the batches: the text of ``--mixing`` and the weights it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtlbench.errors import RequestError, did_you_mean

KNOWN = (
    "proportional, uniform, fraction, temperature:T with T > 0, such as temperature:2, capped:ROWS with ROWS >= 1, "
    "such as capped:10000, weights:TASK=W,TASK=W with W > 0, such as weights:glue/rte=2,glue/sst2=1"
)


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """The mixture that the text of an option describes."""

    kind: str
    value: float = 0.0
    """``T`` of ``temperature:T``, ``ROWS`` of ``capped:ROWS``."""
    of_task: Mapping[str, float] | None = None
    """The weights of ``weights:``, in the order of the text."""

    @property
    def every_step(self) -> bool:
        """Whether each step holds the tasks in the same numbers, at least one row of each."""
        return self.kind == "fraction"

    def weights(self, rows: Sequence[int]) -> list[float]:
        """The weight of each task from the rows it has; 0 for a task without rows.

        Fixed weights go by position: :func:`ordered` sorts their text by the tasks of a cell.

        Raises:
            RequestError: the fixed weights are not as many as the tasks.
        """
        if self.of_task is not None:
            if len(self.of_task) != len(rows):
                raise RequestError(f"mixing names {len(self.of_task)} tasks and the cell has {len(rows)}.")
            return [weight if n else 0.0 for weight, n in zip(self.of_task.values(), rows, strict=True)]
        return [self._weight(n) for n in rows]

    def rows_per_epoch(self, rows: Sequence[int]) -> int:
        """Rows of one pass over the joint data: a capped task counts with its cap."""
        return sum(min(n, round(self.value)) if self.kind == "capped" else n for n in rows)

    def _weight(self, rows: int) -> float:
        if self.kind == "uniform":
            return float(rows > 0)
        if self.kind == "temperature":
            return float(float(rows) ** (1 / self.value))
        return min(float(rows), self.value) if self.kind == "capped" else float(rows)


def read_mixing(text: str) -> Mixing:
    """The mixture that ``text`` describes.

    - ``proportional``: by rows;
    - ``uniform``: all tasks alike;
    - ``temperature:T``: by rows to the power of 1/T (Raffel et al. 2020, arXiv:1910.10683, section 3.5.2);
    - ``capped:ROWS``: by rows, of which at most ``ROWS`` count (same place);
    - ``weights:glue/rte=2,glue/sst2=1``: as given;
    - ``fraction``: every step holds the same fraction of each task's rows, and at least one (PEML, arXiv:2605.14055,
      eq. 1: floor(gamma m_i) rows, here with the gamma that gives the batch size).

    Raises:
        RequestError: for anything else.
    """
    kind, _, argument = text.partition(":")
    if text in ("proportional", "uniform", "fraction"):
        return Mixing(kind=kind)
    if kind == "weights" and argument:
        return Mixing(kind=kind, of_task=fixed_weights(argument, what=f"mixing={text!r}", known=KNOWN))
    value = _number(argument)
    if (kind == "temperature" and value > 0) or (kind == "capped" and value >= 1 and value.is_integer()):
        return Mixing(kind=kind, value=value)
    raise RequestError(f"mixing={text!r} is not known. Known: {KNOWN}.")


def ordered(text: str, tasks: Sequence[str]) -> str:
    """``text`` with fixed weights in the order of ``tasks``; any other mixture as it is.

    Raises:
        RequestError: the mixture is not known, or a task has no weight or is not among ``tasks``.
    """
    return ordered_weights(text, read_mixing(text).of_task, tasks, what=f"mixing={text!r}")


def ordered_weights(text: str, weights: Mapping[str, float] | None, tasks: Sequence[str], *, what: str) -> str:
    """``weights:...`` with the ``weights`` of ``text`` in the order of ``tasks``; without weights ``text`` as it is.

    Raises:
        RequestError: a task has no weight, or one is not among ``tasks``; ``what`` begins the message.
    """
    if weights is None:
        return text
    for task in weights:
        if task not in tasks:
            raise RequestError(f"{what}: {task!r} is not trained here. {did_you_mean(task, tasks)}")
    without = [task for task in tasks if task not in weights]
    if without:
        raise RequestError(f"{what} gives no weight to {', '.join(without)}. Give one to every task.")
    return "weights:" + ",".join(f"{task}={weights[task]:g}" for task in tasks)


def fixed_weights(text: str, *, what: str, known: str) -> dict[str, float]:
    """``"glue/rte=2,glue/sst2=1"`` as task to weight.

    Raises:
        RequestError: a part is none, or a task has two; ``what`` begins the message and ``known`` ends it.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        task, _, weight = part.partition("=")
        if task in weights or not task or not _number(weight) > 0:
            raise RequestError(f"{what}: {part!r} must be TASK=W with W > 0, each task once. Known: {known}.")
        weights[task] = _number(weight)
    return weights


def _number(text: str) -> float:
    """The number, or 0 where there is no finite one."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0
