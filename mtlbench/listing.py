"""What a suite consists of, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from mtlbench.api.task import Task
from mtlbench.errors import MtlbenchError
from mtlbench.plugins import load_suite


def suite_lines(name: str) -> Iterator[str]:
    """Two lines a task of an installed suite: data set, splits and metrics; source and licence.

    A suite that cannot be loaded gives one line that says why.
    """
    try:
        suite = load_suite(name)
    except MtlbenchError as error:
        yield str(error)
        return
    width = max((len(task.name) for task in suite.tasks), default=0)
    for task in suite.tasks:
        yield f"{name}/{task.name:<{width}}  {_facts(task)}"
        yield f"{'':<{len(name) + width + 3}}{task.source or 'no source'}; licence: {task.licence or 'not stated'}"


def _facts(task: Task) -> str:
    data = f"{task.dataset} {task.config or ''}".rstrip()
    shots = f", {task.shots}-shot" if task.shots else ""
    splits = f"{task.train_split} -> {task.eval_split}"
    return f"{data}, {splits}{shots}, {' and '.join(task.metrics)}"
