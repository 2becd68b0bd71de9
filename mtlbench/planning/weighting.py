"""How much each task's loss counts in a step: the text of ``--task-weighting``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtlbench.errors import RequestError
from mtlbench.planning.mixing import fixed_weights, ordered_weights

KNOWN = "method, rows, tasks, weights:TASK=W,TASK=W with W > 0, such as weights:glue/rte=2,glue/sst2=1"


@dataclass(frozen=True, kw_only=True)
class TaskWeighting:
    """The weighting that the text of an option describes."""

    kind: str
    of_task: Mapping[str, float] | None = None
    """The weights of ``weights:``, in the order of the text."""

    def weights(self, tasks: int) -> list[float] | None:
        """The weight of each task's mean loss; ``None`` where rows weigh alike.

        Raises:
            RequestError: the text names another number of tasks.
        """
        if self.kind == "rows":
            return None
        weights = [1.0] * tasks if self.of_task is None else list(self.of_task.values())
        if len(weights) != tasks:
            raise RequestError(f"task_weighting names {len(weights)} tasks and the cell has {tasks}.")
        return weights


def read_weighting(text: str) -> TaskWeighting:
    """The weighting that ``text`` describes.

    - ``method``: as each method declares it (``rows`` for nearly all, ``tasks`` for PEML);
    - ``rows``: the mean over the rows of a step;
    - ``tasks``: the mean over the tasks in a step of each one's mean over rows (PEML, arXiv:2605.14055, eq. 4);
    - ``weights:glue/rte=2,glue/sst2=1``: as ``tasks``, weighted as given, and divided by the weights of those present.

    Raises:
        RequestError: for anything else.
    """
    kind, _, argument = text.partition(":")
    if text in ("method", "rows", "tasks"):
        return TaskWeighting(kind=kind)
    if kind == "weights" and argument:
        return TaskWeighting(kind=kind, of_task=fixed_weights(argument, what=f"task_weighting={text!r}", known=KNOWN))
    raise RequestError(f"task_weighting={text!r} is not known. Known: {KNOWN}.")


def ordered_weighting(text: str, tasks: Sequence[str]) -> str:
    """``text`` with its weights in the order of ``tasks``; any other weighting as it is.

    Raises:
        RequestError: a task has no weight, or one is not among ``tasks``.
    """
    return ordered_weights(text, read_weighting(text).of_task, tasks, what=f"task_weighting={text!r}")
