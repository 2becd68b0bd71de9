"""mtlbench compares multi-task parameter-efficient fine-tuning methods.

Functions for notebooks and scripts: :func:`plan`, :func:`run`, :func:`load`, :func:`load_adapter`, :func:`check` and
:func:`published_tables`. The other names are what a plugin author imports. All load on first use, so that
``mtlbench --help`` stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlbench import nn
    from mtlbench.api.backbone import PackagedBackbone
    from mtlbench.api.balancer import Balancer, GradientWeights, LossWeights
    from mtlbench.api.executor import Executor, Launch, Workers
    from mtlbench.api.hooks import hookimpl
    from mtlbench.api.method import Answers, Method, ReadOut, Setup, SetupTask, Stateful, Trainer, Value
    from mtlbench.api.report import Ledger, Report
    from mtlbench.api.routing import Routing, RowSums
    from mtlbench.api.task import Task, TaskSuite
    from mtlbench.composition import Composite
    from mtlbench.errors import MtlbenchError
    from mtlbench.interface.adapters import load_adapter
    from mtlbench.interface.calls import check, plan, published_tables, run
    from mtlbench.interface.study import Study, load

__version__ = "0.1.0"
__all__ = [
    "Answers",
    "Balancer",
    "Composite",
    "Executor",
    "GradientWeights",
    "Launch",
    "Ledger",
    "LossWeights",
    "Method",
    "MtlbenchError",
    "PackagedBackbone",
    "ReadOut",
    "Report",
    "Routing",
    "RowSums",
    "Setup",
    "SetupTask",
    "Stateful",
    "Study",
    "Task",
    "TaskSuite",
    "Trainer",
    "Value",
    "Workers",
    "check",
    "hookimpl",
    "load",
    "load_adapter",
    "nn",
    "plan",
    "published_tables",
    "run",
]

_HOMES = {
    "Answers": "api.method",
    "Balancer": "api.balancer",
    "GradientWeights": "api.balancer",
    "LossWeights": "api.balancer",
    "Composite": "composition",
    "Executor": "api.executor",
    "Launch": "api.executor",
    "Ledger": "api.report",
    "Workers": "api.executor",
    "hookimpl": "api.hooks",
    "Method": "api.method",
    "PackagedBackbone": "api.backbone",
    "ReadOut": "api.method",
    "Setup": "api.method",
    "SetupTask": "api.method",
    "Stateful": "api.method",
    "Trainer": "api.method",
    "Value": "api.method",
    "Report": "api.report",
    "Routing": "api.routing",
    "RowSums": "api.routing",
    "Task": "api.task",
    "TaskSuite": "api.task",
    "MtlbenchError": "errors",
    "Study": "interface.study",
    "check": "interface.calls",
    "load": "interface.study",
    "load_adapter": "interface.adapters",
    "plan": "interface.calls",
    "published_tables": "interface.calls",
    "run": "interface.calls",
}


def __getattr__(name: str) -> Any:
    if name == "nn":
        return importlib.import_module("mtlbench.nn")
    if name not in _HOMES:
        raise AttributeError(f"module 'mtlbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mtlbench.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
