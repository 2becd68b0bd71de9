"""Checks of what a method's class and module say: settings that are none, and libraries that planning would load."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from functools import cache

from mtlbench.api.method import Method
from mtlbench.composition import Composite
from mtlbench.conformance.findings import NotApplicable, PromiseBroken
from mtlbench.conformance.fixture import Fixture
from mtlbench.plugins import offers

HEAVY = ("torch", "transformers", "peft", "datasets", "lm_eval", "tensorflow", "jax", "scipy", "sklearn", "pandas")
"""Packages whose import takes longer than a plan."""


def settings(fixture: Fixture) -> None:
    """Every number, text and switch in the class body is a setting or says that it is none."""
    for method in _members(fixture.method):
        for cls in type(method).__mro__:
            if cls is Method or not issubclass(cls, Method) or cls.__module__.startswith("mtlbench."):
                continue
            hints = inspect.get_annotations(cls)
            for name, value in vars(cls).items():
                plain = isinstance(value, bool | int | float | str) and not name.startswith("_")
                if plain and name not in hints and not hasattr(Method, name) and name not in ("name", "source"):
                    raise PromiseBroken(
                        f"{name} = {value!r} has no annotation, so `{method.name}[{name}=...]` is refused: write "
                        f"`{name}: {type(value).__name__} = {value!r}`, or ClassVar for a constant"
                    )


def imports(fixture: Fixture) -> None:
    """Importing the modules of the method loads none of :data:`HEAVY`."""
    modules = {type(method).__module__ for method in _members(fixture.method)}
    offered = {offer.module for known in offers("methods").values() for offer in known}
    installed = sorted(modules & offered)
    if not installed:
        raise NotApplicable("the class is not in the module of an entry point")
    loaded = loaded_by(tuple(installed))
    if loaded:
        raise PromiseBroken(f"importing {', '.join(installed)} loads {', '.join(loaded)}")


@cache
def loaded_by(modules: tuple[str, ...]) -> tuple[str, ...]:
    """Which of :data:`HEAVY` a new process has loaded once it has imported ``modules``."""
    names = ", ".join(("sys", *modules))
    code = f"import {names}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise PromiseBroken(f"a new process cannot import {', '.join(modules)}: {done.stderr.strip().splitlines()[-1]}")
    return tuple(done.stdout.split())


def _members(method: Method) -> list[Method]:
    if not isinstance(method, Composite):
        return [method]
    return [inner for part in method.parts() for inner in _members(part)]
