"""The pluggy hooks of mtlbench: the objects a plugin may provide, the events an observer may receive.

A plugin module marks its functions with :data:`hookimpl`. An entry point of the matching group
(``mtlbench.methods``, ``.tasks``, ``.balancers``, ``.backbones``, ``.reports``, ``.published``, ``.executors``,
``.observers``) names the module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from mtlbench.api.backbone import PackagedBackbone
    from mtlbench.api.balancer import Balancer
    from mtlbench.api.cell import Cell
    from mtlbench.api.executor import Executor
    from mtlbench.api.method import Method
    from mtlbench.api.record import Record
    from mtlbench.api.report import Ledger, Report
    from mtlbench.api.task import TaskSuite

PROJECT = "mtlbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class NounHooks:
    """Objects provided by a plugin module. Called only when one of its names is used."""

    @hookspec
    def mtlbench_methods(self) -> Iterable[type[Method]]:  # type: ignore[empty-body]
        """The module's methods."""

    @hookspec
    def mtlbench_tasks(self) -> Iterable[TaskSuite]:  # type: ignore[empty-body]
        """The module's suites. No data is read here."""

    @hookspec
    def mtlbench_balancers(self) -> Iterable[type[Balancer]]:  # type: ignore[empty-body]
        """The module's balancers of tasks."""

    @hookspec
    def mtlbench_backbones(self) -> Iterable[PackagedBackbone]:  # type: ignore[empty-body]
        """The module's backbones: names and paths of model files. No file is read here."""

    @hookspec
    def mtlbench_reports(self) -> Iterable[Report]:  # type: ignore[empty-body]
        """The module's reports: pure renderers that never import torch."""

    @hookspec
    def mtlbench_published(self) -> Iterable[Ledger]:  # type: ignore[empty-body]
        """The module's ledgers: folders of published tables, one JSON file per paper."""

    @hookspec
    def mtlbench_executors(self) -> Iterable[Executor]:  # type: ignore[empty-body]
        """The module's ways to start workers."""


class EventHooks:
    """Events for observers. An observer that raises is reported once by name and dropped."""

    @hookspec
    def mtlbench_run_started(self, cells: Sequence[Cell]) -> None:
        """Called in the parent before the first worker starts, with every cell of the request."""

    @hookspec
    def mtlbench_cell_started(self, cell: Cell) -> None:
        """Called in the worker that claimed the cell, and in the parent when it sees the claim."""

    @hookspec
    def mtlbench_training_planned(self, cell: Cell, total_steps: int, done: int) -> None:
        """Called in the worker before the first step, with the optimizer steps of the whole budget.

        ``done`` of them were done by an earlier attempt, which this one resumes; they are not reported again.
        """

    @hookspec
    def mtlbench_step_finished(self, cell: Cell, step: int, row_losses: Tensor, tasks: Tensor) -> None:
        """Called in the worker after each optimizer step; the first is step 1.

        ``row_losses`` and ``tasks`` are ``[rows]``, detached and still on the device: reading them synchronises.
        """

    @hookspec
    def mtlbench_cell_finished(self, record: Record) -> None:
        """Called in the worker after the record was published, and in the parent when it sees the record.

        In the parent also for cells that had a record before the run, without ``mtlbench_cell_started``.
        """

    @hookspec
    def mtlbench_step_logged(self, cell: Cell, line: Mapping[str, Any]) -> None:
        """Called in the parent with each new line of the cell's log (:class:`mtlbench.observers.events.StepLog`)."""

    @hookspec
    def mtlbench_run_finished(self) -> None:
        """Called in the parent when no worker is running any more, also after an interruption."""


NOUN_HOOKS: dict[str, str] = {
    "methods": "mtlbench_methods",
    "tasks": "mtlbench_tasks",
    "balancers": "mtlbench_balancers",
    "backbones": "mtlbench_backbones",
    "reports": "mtlbench_reports",
    "published": "mtlbench_published",
    "executors": "mtlbench_executors",
}
GROUPS: tuple[str, ...] = (*NOUN_HOOKS, "observers")
