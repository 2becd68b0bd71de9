"""Words to an executor with its settings: ``slurm[partition=gpu,time=60]``."""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import Any

from mtlbench.api.executor import Executor
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.planning.settings import typed
from mtlbench.plugins import load_executor

_WORDS = re.compile(r"(?P<name>[^\[\]=,\s]+)(?:\[(?P<inner>[^\[\]]*)\])?")


def executor_of(words: str) -> Executor:
    """The executor that ``words`` name, with the settings in brackets.

    Raises:
        RequestError: the executor or a setting is unknown, or a value is of the wrong type.
    """
    found = _WORDS.fullmatch(words)
    if found is None:
        raise RequestError(
            f"Cannot read --executor {words!r}. Write a name, with settings in brackets, such as "
            "'slurm[partition=gpu,time=60]'."
        )
    executor: Any = load_executor(found["name"])
    known = {name: hint for name, hint in typing.get_type_hints(type(executor)).items() if name in executor.settings}
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in (found["inner"] or "").split(","))):
        name, equals, value = part.partition("=")
        if name not in known:
            raise RequestError(f"Executor {executor.name!r} has no setting {name!r}. {did_you_mean(name, known)}")
        if not equals:
            raise RequestError(f"Setting {name!r} of executor {executor.name!r} needs a value: {name}=VALUE.")
        given[name] = typed(f"Executor {executor.name!r}", name, value, known[name])
    made: Executor = dataclasses.replace(executor, **given) if given else executor
    return made
