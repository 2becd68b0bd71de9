"""Parses ``--executor``: a name with settings in brackets, such as ``slurm[partition=gpu,time=60]``."""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import Any

from mtlbench.api.executor import Executor
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.executors.guarded import guarded
from mtlbench.planning.settings import typed
from mtlbench.plugins import load_executor

_PATTERN = re.compile(r"(?P<name>[^\[\]=,\s]+)(?:\[(?P<inner>[^\[\]]*)\])?")


def executor_of(text: str) -> Executor:
    """The executor named by ``text``, with the settings in brackets; of another package, watched.

    Raises:
        RequestError: the executor or a setting is unknown, or a value is of the wrong type.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise RequestError(
            f"Cannot read --executor {text!r}. Write a name, with settings in brackets, such as "
            "'slurm[partition=gpu,time=60]'."
        )
    executor: Any = load_executor(match["name"])
    known = {name: hint for name, hint in typing.get_type_hints(type(executor)).items() if name in executor.settings}
    values: dict[str, Any] = {}
    for entry in filter(None, (entry.strip() for entry in (match["inner"] or "").split(","))):
        name, equals, value = entry.partition("=")
        if name not in known:
            raise RequestError(f"Executor {executor.name!r} has no setting {name!r}. {did_you_mean(name, known)}")
        if not equals:
            raise RequestError(f"Setting {name!r} of executor {executor.name!r} needs a value: {name}=VALUE.")
        values[name] = typed(f"Executor {executor.name!r}", name, value, known[name])
    configured: Executor = dataclasses.replace(executor, **values) if values else executor
    return guarded(configured)
