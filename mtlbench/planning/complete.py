"""Names that the shell completes: of methods, tasks, presets and so on, each in a list with commas.

``mtlbench`` asks for them only when the Tab key is pressed, so a command loads nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Complete = Callable[[Any, Any, str], list[str]]
"""As click calls it: context, parameter, and what is typed."""


def names(*kinds: str) -> Complete:
    """A ``shell_complete`` for an option or argument that takes names of these kinds, several with commas.

    Kinds are plugin groups (``methods``, ``tasks``, ``backbones``, ``reports``, ...), ``presets`` and ``protocols``.
    Presets of a method follow once its name and a slash are typed. A name that stands in the list already is not
    offered again.
    """

    def complete(_: Any, __: Any, typed: str) -> list[str]:
        before, comma, last = typed.rpartition(",")
        taken = set(before.split(","))
        found = sorted({name for kind in kinds for name in _known(kind, last) if name.startswith(last)} - taken)
        return [f"{before}{comma}{name}" for name in found]

    return complete


def _known(kind: str, typed: str) -> Iterable[str]:
    """Every name of a kind that can follow from what was typed. A plugin that cannot be loaded offers nothing."""
    from mtlbench.errors import MtlbenchError
    from mtlbench.plugins import carried, offers

    try:
        if kind == "tasks":
            return _tasks(typed)
        if kind == "presets":
            return carried("presets", typed)[1]
        if kind == "protocols":
            from mtlbench.planning.protocols import names as named

            return {*named(), *carried("protocols", typed)[1]}
        return offers(kind)
    except MtlbenchError:
        return ()


def _tasks(typed: str) -> Iterable[str]:
    """Suites; behind a slash, the tasks of one."""
    from mtlbench.plugins import load_suite, offers

    suite, slash, _ = typed.partition("/")
    if not slash:
        return offers("tasks")
    return [f"{suite}/{task.name}" for task in load_suite(suite).tasks] if suite in offers("tasks") else ()
