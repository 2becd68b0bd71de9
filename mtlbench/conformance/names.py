"""Words to the methods or suites to check, without torch."""

from __future__ import annotations

from dataclasses import replace

from mtlbench.api.method import Method
from mtlbench.api.task import TaskSuite
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.plan import resolve_tasks
from mtlbench.plugins import offers
from mtlbench.settings import build, read_settings, split_methods


def methods_named(words: str) -> dict[str, Method]:
    """``"peml,lora[rank=4]"`` to the two methods, by what they are called in the words.

    Raises:
        RequestError: for an unknown method or setting, or one the method refuses.
    """
    methods: dict[str, Method] = {}
    for name, settings in split_methods(words):
        _must_be_known(name)
        inner = ",".join(f"{setting}={word}" for setting, word in settings.items())
        methods[f"{name}[{inner}]" if inner else name] = build(name, read_settings(name, settings))
    return methods


def suites_named(words: str) -> list[TaskSuite]:
    """``"glue,superglue/rte"`` to the suites, each with the named tasks only; empty where a name is that of no suite.

    Raises:
        RequestError: a suite has no such task.
    """
    suites, methods = offers("tasks"), offers("methods")
    heads = [word.strip().partition("/")[0] for word in words.split(",")]
    if not all(head in suites and head not in methods for head in heads):
        return []
    tasks, found = resolve_tasks(words)
    return [
        replace(suite, tasks=tuple(task for full, task in tasks.items() if full.partition("/")[0] == name))
        for name, suite in found.items()
    ]


def _must_be_known(name: str) -> None:
    suites, methods = offers("tasks"), offers("methods")
    for member in name.split("+"):
        if member in methods:
            continue
        if member in suites:
            raise RequestError(f"{member!r} is a suite: check suites and methods with one command each.")
        raise RequestError(f"Unknown method or suite {member!r}. {did_you_mean(member, {*methods, *suites})}")
