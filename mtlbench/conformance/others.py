"""Checks of reports, observers and executors: small runs of what a command does with them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.executor import Executor, Launch, Workers
from mtlbench.api.hooks import EventHooks
from mtlbench.api.record import Costs, Failure, Record, TaskScore
from mtlbench.api.report import Report
from mtlbench.api.study import Study
from mtlbench.conformance.declared import loaded_by
from mtlbench.conformance.findings import Finding, NotApplicable, PromiseBroken
from mtlbench.errors import MtlbenchError, RequestError
from mtlbench.executors.guarded import guarded
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.plugins import load_executor, load_observer, load_report, offer_of, offers, raised
from mtlbench.results.documents import rendered
from mtlbench.results.study import study_of
from mtlbench.store import RunFolder

KINDS = ("reports", "observers", "executors")
RUN_S = 300.0
"""Seconds that the one small cell of an executor's check may take."""
Step = tuple[str, str, Callable[[], None]]
"""Name of a check, its promise, and what raises where it is broken."""


def group_of(name: str) -> str | None:
    """The group among :data:`KINDS` that offers the name; ``None`` where none does."""
    return next((group for group in KINDS if name in offers(group)), None)


def plugin_findings(
    group: str, name: str, *, on_finding: Callable[[Finding], None] = lambda finding: None
) -> tuple[Finding, ...]:
    """All findings about an installed report, observer or executor, in order, up to the first that fails."""
    steps: Mapping[str, Callable[[str], Iterator[Step]]] = {
        "reports": _report_steps,
        "observers": _observer_steps,
        "executors": _executor_steps,
    }
    found: list[Finding] = []
    for check, promise, ask in steps[group](name):
        outcome, message = "ok", promise
        try:
            ask()
        except NotApplicable as reason:
            outcome, message = "skipped", str(reason)
        except (MtlbenchError, PromiseBroken) as error:
            outcome, message = "failed", str(error)
        except (Exception, SystemExit) as error:
            outcome, message = "failed", f"raised {raised(error)}"
        finding = Finding(check, group[:-1], outcome, message)  # type: ignore[arg-type]
        on_finding(finding)
        found.append(finding)
        if outcome != "ok":
            break
    return tuple(found)


# Reports


def sample_studies() -> dict[str, Study]:
    """Small studies of every kind that a report must render."""
    lora, base = ([_record(name, seed) for seed in range(3)] for name in ("lora", "base"))
    failed = Record(
        cell=_cell("peml", 0),
        status="failed",
        failure=Failure(kind="oom", message="CUDA out of memory", next_step="Lower --micro-batch."),
    )
    return {
        "three seeds, a failed and a missing cell": study_of(
            [*lora, *base, failed], expected=[_cell("peml", 0), _cell("peml", 1)]
        ),
        "one seed": study_of([lora[0], base[0]]),
        "two tables": study_of([lora[0], _record("lora", 0, steps=7)]),
        "no record": study_of([], expected=[_cell("lora", 0)]),
        "nothing": study_of([]),
    }


def _cell(method: str, seed: int, **changes: Any) -> Cell:
    protocol = Protocol(data="demo:5f2c", prompts="lm_eval 0.4.13:8cb1f454", **changes)
    tasks = ("glue/rte", "glue/cola")
    return Cell(method=method, seed=seed, tasks=tasks, model="demo", protocol=protocol, plugins={"mtlbench": "0.1.0"})


def _record(method: str, seed: int, **changes: Any) -> Record:
    cell = _cell(method, seed, **changes)
    score = 60.0 + seed + 5 * (method == "lora")
    scores = {
        task: TaskScore(score=score, metrics={"acc": score / 100}, rows=200, majority=50.0) for task in cell.tasks
    }
    costs = Costs(trainable_parameters=25_000, backbone_parameters=1_000_000, train_seconds=61.0, total_seconds=70.0)
    return Record(cell=cell, status="ok", scores=scores, costs=costs, provenance={"finished": 1.8e9})


def _report_steps(name: str) -> Iterator[Step]:
    loaded: list[Report] = []

    def load() -> None:
        loaded.append(load_report(name))

    def light() -> None:
        module = offer_of("reports", name).module
        heavy = sorted(set(loaded_by((module,))) & {"torch", "transformers", "peft", "tensorflow", "jax"})
        if heavy:
            raise PromiseBroken(f"importing {module} loads {', '.join(heavy)}, which `mtlbench report` never does")

    def render(study: Study) -> Callable[[], None]:
        return lambda: _rendered_twice(loaded[0], study)

    yield "load", "its hook returns an instance of mtlbench.Report under its name", load
    yield "imports", "importing it loads no torch", light
    for what, study in sample_studies().items():
        yield "render", f"documents that can be written, the same twice: {what}", render(study)


def _rendered_twice(report: Report, study: Study) -> None:
    if dict(rendered(report, study)) != dict(rendered(report, study)):
        raise PromiseBroken("it renders one study into different documents: nothing in them may follow from the time")


# Observers


def _observer_steps(name: str) -> Iterator[Step]:
    loaded: list[ModuleType] = []

    def load() -> None:
        loaded.append(load_observer(name))
        if not any(hasattr(loaded[0], hook) for hook in vars(EventHooks) if hook.startswith("mtlbench_")):
            raise PromiseBroken("its module implements no event hook: mark a function such as mtlbench_cell_finished")

    def told(side: str) -> Callable[[], None]:
        return lambda: _tell(loaded[0], side)

    yield "load", "its module imports, and its hooks have known names and parameters", load
    yield "in the parent", "it takes all events of a run in the parent", told("parent")
    yield "in a worker", "it takes all events of a cell in the worker", told("worker")


def _tell(module: ModuleType, side: str) -> None:
    import pluggy

    from mtlbench.api.hooks import PROJECT

    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(EventHooks)
    manager.register(module)
    hook: Any = manager.hook
    cell, done = _cell("lora", 0), _record("lora", 0)
    failed = Record(cell=_cell("lora", 1), status="failed", failure=Failure(kind="oom", message="m", next_step="n"))
    if side == "parent":
        hook.mtlbench_run_started(cells=[cell, failed.cell])
        hook.mtlbench_cell_started(cell=cell)
        for line in (
            {"started": "2026-01-01T00:00:00"},
            {"total": 2},
            {"step": 1, "loss": 1.0, "tasks": {}, "seconds": 1},
        ):
            hook.mtlbench_step_logged(cell=cell, line=line)
    else:
        hook.mtlbench_cell_started(cell=cell)
        hook.mtlbench_training_planned(cell=cell, total_steps=2, done=0)
        hook.mtlbench_step_finished(cell=cell, step=1, row_losses=torch.ones(3), tasks=torch.tensor([0, 1, 0]))
    for record in (done, failed):
        hook.mtlbench_cell_finished(record=record)
    if side == "parent":
        hook.mtlbench_run_finished()


# Executors


def _executor_steps(name: str) -> Iterator[Step]:
    loaded: list[Executor] = []

    def load() -> None:
        loaded.append(load_executor(name))
        unknown = [field for field in loaded[0].settings if not hasattr(loaded[0], field)]
        if unknown:
            raise PromiseBroken(f"its settings name {', '.join(unknown)}, no field of it")

    def here() -> None:
        try:
            guarded(loaded[0]).check("cpu")
        except RequestError as error:
            raise NotApplicable(f"it says that it cannot run here: {error}") from error

    yield "load", "its hook returns an instance of mtlbench.Executor under its name", load
    yield "check", "it says whether it can run on this machine", here
    yield "run", "it starts workers that run a cell and end", lambda: _run_one(guarded(loaded[0]))


def _run_one(executor: Executor) -> None:
    """One untrained cell on demo rows, in a folder of its own."""
    plan = make_plan(Request(methods="base", tasks="glue/wnli", protocol={"train_rows": 8, "eval_rows": 4, "steps": 1}))
    with tempfile.TemporaryDirectory(prefix="mtlbench-") as temporary:
        folder = RunFolder(Path(temporary) / "run")
        folder.preflight()
        launch = Launch(
            folder=folder.path, request=folder.put_request(plan.to_json(), plan.cells), workers=1, device="cpu"
        )
        workers = executor.start(launch)
        try:
            _wait_for(workers, folder, plan.cells[0])
        finally:
            workers.stop(grace_s=10)
        if workers.alive():
            raise PromiseBroken("workers are alive after stop() has returned")
        record = folder.record(plan.cells[0].key)
        if record is None:
            raise PromiseBroken("no worker is left and the cell has no record: is the worker started as the page says?")
        if record.status != "ok":
            raise PromiseBroken(f"the cell is {record.status}: {record.failure.message if record.failure else ''}")


def _wait_for(workers: Workers, folder: RunFolder, cell: Cell) -> None:
    deadline = time.monotonic() + RUN_S
    while workers.alive() and folder.record(cell.key) is None:
        if time.monotonic() > deadline:
            raise PromiseBroken(f"a small cell has no record after {RUN_S:.0f} s")
        time.sleep(0.2)
