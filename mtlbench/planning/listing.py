"""What a suite consists of, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from mtlbench.api.task import Task
from mtlbench.errors import MtlbenchError
from mtlbench.planning.own_protocol import make_protocol
from mtlbench.planning.protocols import about, names
from mtlbench.plugins import load_suite


def protocol_lines() -> Iterator[str]:
    """Name, hash of the fields and meaning of each protocol that comes along."""
    width = max(map(len, names()))
    for name in names():
        yield f"{name:<{width}}  {make_protocol({'name': name}, data='').hash()}  {about(name)}"


def suite_lines(name: str) -> Iterator[str]:
    """Two lines a task of an installed suite: data set, splits and metrics; source, licence and paper tables.

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
        licence, tables = task.licence or "not stated", ", ".join(task.tables) or "none"
        yield f"{'':<{len(name) + width + 3}}{task.source or 'no source'}; licence: {licence}; tables: {tables}"


def _facts(task: Task) -> str:
    data = f"{task.dataset} {task.config or ''}".rstrip()
    examples = f" from {task.shots_split}" if task.shots_split else ""
    shots = f", {task.shots}-shot{examples}" if task.shots else ""
    splits = f"{task.train_split} -> {task.eval_split}"
    return f"{data}, {splits}{shots}, {' and '.join(task.metrics)}"
