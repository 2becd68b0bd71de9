"""How much each task counts in a step: the texts of ``--task-weighting`` and ``--balance``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlbench.api.balancer import Balancer
from mtlbench.api.method import Method
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.planning.mixing import fixed_weights, ordered_weights
from mtlbench.planning.settings import split_methods, typed
from mtlbench.plugins import load_balancer

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


def read_balance(text: str) -> Balancer | None:
    """The balancer that ``text`` describes, such as ``cagrad[c=0.2]``; ``None`` for ``none``.

    Raises:
        RequestError: it cannot be read, a name or a setting is unknown, or a value is refused.
    """
    if text == "none":
        return None
    try:
        named = split_methods(text)
    except RequestError as error:
        raise RequestError(str(error).replace("--methods", "--balance")) from error
    if len(named) != 1 or "+" in named[0][0]:
        raise RequestError(f"--balance {text!r} names {len(named)} balancers: name one, or none.")
    ((name, options),) = named
    kind = load_balancer(name)
    known = kind.setting_types()
    settings: dict[str, Any] = {}
    for setting, value in options.items():
        if setting not in known:
            raise RequestError(f"Balancer {name!r} has no setting {setting!r}. {did_you_mean(setting, known)}")
        settings[setting] = typed(f"Balancer {name!r}", setting, value, known[setting])
    return kind(**settings)


def check_balance(text: str, methods: Sequence[tuple[str, Method]]) -> None:
    """Refuse a balancer that is not installed, or that a method of a request leaves no room for.

    Args:
        methods: Name and method.

    Raises:
        RequestError: naming the methods.
    """
    balancer = read_balance(text)
    if balancer is None:
        return
    if (missing := balancer.missing()) is not None:
        raise RequestError(f"--balance {balancer.name} needs what is not installed: {missing}.")
    own = [name for name, method in methods if method.owns_loss()]
    if own:
        raise RequestError(
            f"--balance {text}: {', '.join(own)} computes its loss itself, so the tasks cannot be weighed from "
            "outside. Leave it out of --methods, or the option."
        )
    auxiliary = [name for name, method in methods if method.has_auxiliary_loss]
    if auxiliary and balancer.reads == "gradients":
        raise RequestError(
            f"--balance {text}: {', '.join(auxiliary)} has an auxiliary loss over all rows of a step, which is no sum "
            "over tasks. Leave it out of --methods, or name a balancer of losses, such as uncertainty or dwa."
        )


def unbalanced(balance: str) -> str:
    """Why a balancer that weighs gradients is refused where a cell has several devices."""
    return (
        f"--balance {balance} weighs the gradients of tasks, which are not summed over devices task by task. Give its "
        "cells one device (leave --devices-per-cell and --shard out), or name a balancer of losses, such as "
        "uncertainty or dwa."
    )
