"""From typed requests to cells, in one direction: methods, tasks, protocol, model, data, cells."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.task import Task, TaskSuite
from mtlbench.backbones.names import (
    check_model,
    check_positions,
    config_of,
    files_of,
    is_packaged,
    limits_of,
    model_notes,
    weights_digest,
)
from mtlbench.backbones.quantization import check_loadable, check_methods, check_not_gguf, label_of
from mtlbench.data.choose import open_source
from mtlbench.data.lm_task import prompt_identity
from mtlbench.data.source import Source
from mtlbench.errors import MtlbenchError, RequestError, did_you_mean
from mtlbench.planning.built_on import with_bases
from mtlbench.planning.protocols import choose_protocol
from mtlbench.planning.request import Request, Requests, read_requests
from mtlbench.planning.settings import MethodChoice, read_methods
from mtlbench.planning.sources import sources_of
from mtlbench.planning.sweeps import Sweeps
from mtlbench.planning.weighting import check_balance, read_balance
from mtlbench.plugins import load_suite, offer_of, offers, offers_read_once
from mtlbench.tokens.chat import check_chat_template


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells of a request, and what they were made from."""

    request: Request
    cells: tuple[Cell, ...]
    suites: Mapping[str, TaskSuite]
    source: Source
    notes: tuple[str, ...] = ()
    """What the user should know before the run."""
    sweeps: Sweeps = field(default_factory=dict)
    """Options that the cells have several values of, everything else equal."""

    def to_json(self) -> dict[str, Any]:
        """The request for the run folder, with notes and sweeps where there are any."""
        more = {
            "notes": list(self.notes),
            "sweeps": {name: list(values) for name, values in self.sweeps.items()},
        }
        return {**self.request.to_json(), **{name: value for name, value in more.items() if value}}

    @property
    def models(self) -> tuple[str, ...]:
        """The backbones of the cells."""
        return tuple(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def default_folder(self) -> Path:
        """Where a run goes when no folder is named: ``runs/<tasks>-<model>``."""
        suites = "-".join(dict.fromkeys(part.split("/")[0] for part in self.request.tasks.split(",")))
        models = "-".join(Path(model).name for model in self.sweeps.get("model", (self.request.model,)))
        return Path("runs") / f"{suites}-{models}"


def plan_of(options: Mapping[str, Any]) -> Plan:
    """The plan of a command's options, on top of those of its preset; ``None`` is an option that was not given.

    Raises:
        RequestError: as :func:`~mtlbench.planning.request.read_requests` and :func:`make_plan` raise it.
    """
    return plan_requests(read_requests(options))


def plan_requests(requests: Requests) -> Plan:
    """One plan of all requests of a command.

    Raises:
        RequestError: as :func:`make_plan` raises it.
    """
    with offers_read_once():
        plan = join_plans([make_plan(request) for request in requests.parts], notes=requests.notes)
        notes = tuple(_unmoved(requests)) if "learning_rate" in requests.sweeps else ()
    return replace(plan, sweeps=requests.sweeps, notes=(*plan.notes, *notes))


def _unmoved(requests: Requests) -> Iterator[str]:
    """Methods that a sweep of the protocol's learning rate does not reach."""
    own = {c.name for part in requests.parts for c in read_methods(part.methods) if c.method.learning_rate is not None}
    if own:
        yield (
            f"--learning-rate is the rate of methods that set none, and {', '.join(sorted(own))} sets its own: every "
            "value of the sweep gives it the same numbers."
        )


def make_plan(request: Request) -> Plan:
    """Check the whole request and lay out its cells; no data row is read and no model is loaded.

    Raises:
        RequestError: a name is unknown, a setting is wrong, data lacks a file, a split or a column.
    """
    with offers_read_once():
        return _make_plan(request)


def _make_plan(request: Request) -> Plan:
    methods, on_bases = with_bases(read_methods(request.methods))
    targets = resolve_tasks(request.tasks)
    choice = choose_protocol(request.protocol)
    sources = resolve_tasks(choice.sources, option="--sources") if choice.sources else ({}, {})
    tasks, suites = _trained(sources, targets)
    probe, of_probe = resolve_tasks(choice.probe, option="--probe") if choice.probe else ({}, {})
    _check_probe(probe, tasks)
    suites = {**suites, **of_probe}
    check_model(request.model)
    if choice.changed.chat_template:
        check_chat_template(request.model)
    source = open_source(request.data_name, suites=suites)
    read = {**tasks, **probe}
    for task in read.values():
        source.check(task)
    protocol = choice.for_tasks(
        tuple(tasks),
        data=source.identity(tuple(read.values())),
        prompts=prompt_identity(read),
        sources=tuple(sources[0]),
        probe=tuple(probe),
    )
    _check_quantization(request.model, methods, protocol)
    _check_losses(methods, protocol)
    check_balance(protocol.balance, [(chosen.name, chosen.method) for chosen in methods])
    _check_search_rows(methods, protocol)
    check_positions(request.model, max_length=protocol.max_length)
    cells = _cells(request, methods, protocol, tasks=tasks, probe=probe, suites=tuple(suites))
    limits = limits_of(request.model, attention=protocol.attention)
    notes = (*model_notes(request.model), *limits, *on_bases, *_balance_cost(protocol, tasks), *_alike(cells, methods))
    return Plan(request=request, cells=cells, suites=suites, source=source, notes=notes)


def _check_quantization(model: str, methods: Sequence[MethodChoice], protocol: Protocol) -> None:
    files, config = files_of(model), config_of(model)
    if files is not None and files.gguf is not None:
        check_not_gguf(model, protocol.quantize)
    check_loadable(model, protocol.quantize, config)
    if (label := label_of(protocol.quantize, config)) is not None:
        check_methods(model, label, [(chosen.name, chosen.method.supports_quantized) for chosen in methods])


def _check_losses(methods: Sequence[MethodChoice], protocol: Protocol) -> None:
    own = [chosen.name for chosen in methods if chosen.method.owns_loss()]
    if own and protocol.task_weighting != "method":
        raise RequestError(
            f"task_weighting={protocol.task_weighting!r}: {', '.join(own)} computes its loss itself, so the tasks "
            "cannot be weighted from outside. Leave it out of --methods, or the option."
        )


def _balance_cost(protocol: Protocol, tasks: Mapping[str, Task]) -> Iterator[str]:
    balancer = read_balance(protocol.balance)
    if balancer is not None and balancer.reads == "gradients":
        yield (
            f"--balance {protocol.balance} computes the rows of each task in a step apart: up to {len(tasks)} forward "
            "and backward passes where one would do, and as many copies of the gradients of what is trained."
        )


def _check_search_rows(methods: Sequence[MethodChoice], protocol: Protocol) -> None:
    without = [chosen.name for chosen in methods if chosen.method.searches] if protocol.held_out == 0 else []
    if without:
        raise RequestError(
            f"{', '.join(without)} searches on held-out training rows, and held_out=0 keeps none. Give --held-out a "
            "share such as 0.1, or for peml and prefixnas write [arch_update=joint], which searches on training rows, "
            "and for merge a scale and a density."
        )


def join_plans(plans: Sequence[Plan], *, notes: Sequence[str] = ()) -> Plan:
    """One plan with the cells of all, each once, under the request of the first."""
    cells = {cell.key: cell for plan in plans for cell in plan.cells}
    suites = {name: suite for plan in plans for name, suite in plan.suites.items()}
    first = plans[0]
    every = tuple(dict.fromkeys([*notes, *(note for plan in plans for note in plan.notes)]))
    return Plan(request=first.request, cells=tuple(cells.values()), suites=suites, source=first.source, notes=every)


def model_name(model: str) -> str:
    """The model as a cell names it: local files by their absolute path, anything else as given."""
    return str(Path(model).resolve()) if not is_packaged(model) and files_of(model) else model


def resolve_tasks(text: str, *, option: str = "--tasks") -> tuple[dict[str, Task], dict[str, TaskSuite]]:
    """``"glue,superglue/rte"`` to tasks by full name, in order, and the suites they come from.

    Raises:
        RequestError: a suite or task is unknown, or the text of ``option`` names none.
    """
    tasks: dict[str, Task] = {}
    suites: dict[str, TaskSuite] = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        suite_name, slash, task_name = name.partition("/")
        if not slash:
            _refuse_bare_task(name)
        suite = suites.get(suite_name) or load_suite(suite_name)
        suites[suite_name] = suite
        by_name = {task.name: task for task in suite.tasks}
        if slash and task_name not in by_name:
            raise RequestError(f"Suite {suite_name!r} has no task {task_name!r}. {did_you_mean(task_name, by_name)}")
        for task in (by_name[task_name],) if slash else suite.tasks:
            tasks[f"{suite_name}/{task.name}"] = task
    if not tasks:
        raise RequestError(f"{option} is empty. Name a suite such as glue, or tasks such as glue/rte,glue/sst2.")
    return tasks, suites


def _refuse_bare_task(name: str) -> None:
    """Refuse the name of a task without its suite, which several suites may have."""
    known = offers("tasks")
    if name in known:
        return
    homes = []
    for suite in known:
        with contextlib.suppress(MtlbenchError):  # a broken suite of somebody else has nothing to do with this name
            homes += [f"{suite}/{task.name}" for task in load_suite(suite).tasks if task.name == name.lower()]
    if homes:
        raise RequestError(f"{name!r} is no suite but a task. Write {' or '.join(homes)}.")


def _trained(
    sources: tuple[dict[str, Task], dict[str, TaskSuite]], targets: tuple[dict[str, Task], dict[str, TaskSuite]]
) -> tuple[dict[str, Task], dict[str, TaskSuite]]:
    """The tasks that are trained and their suites: sources first, which may not be targets too."""
    both = sorted(set(sources[0]) & set(targets[0]))
    if both:
        raise RequestError(f"{', '.join(both)} cannot be source and target: take it out of --sources or --tasks.")
    return {**sources[0], **targets[0]}, {**sources[1], **targets[1]}


def _check_probe(probe: Mapping[str, Task], trained: Mapping[str, Task]) -> None:
    """A probe says what training did to tasks it did not see: none may be trained, under another name neither."""
    by_data = {(task.dataset, task.config): name for name, task in trained.items()}
    for name, task in probe.items():
        same = name if name in trained else by_data.get((task.dataset, task.config))
        if same is not None:
            what = "is trained" if same == name else f"has the data of {same}, which is trained"
            raise RequestError(
                f"--probe: {name} {what}. A probe task is scored before and after training and never trained on: take "
                f"it out of --probe, or {same} out of --tasks and --sources."
            )


def _cells(
    request: Request,
    methods: Sequence[MethodChoice],
    protocol: Protocol,
    *,
    tasks: Mapping[str, Task],
    probe: Mapping[str, Task],
    suites: tuple[str, ...],
) -> tuple[Cell, ...]:
    """The cells of all methods for each seed, in turn."""
    model, weights = model_name(request.model), weights_digest(request.model)
    suite_owners = [offer_of("tasks", name) for name in suites]
    names = dict.fromkeys(chosen.name for chosen in methods)
    sources = {name: sources_of(name, {**tasks, **probe}, balance=protocol.balance) for name in names}
    owners = {
        name: {
            owner.distribution: owner.version
            for owner in (*(offer_of("methods", member) for member in name.split("+")), *suite_owners)
        }
        for name in names
    }
    names_of_tasks = tuple(tasks)
    cells: dict[str, Cell] = {}
    for seed in request.seeds:
        for chosen in methods:
            cell = Cell(
                method=chosen.name,
                settings=chosen.settings,
                tasks=names_of_tasks,
                model=model,
                protocol=protocol,
                seed=seed,
                weights=weights,
                plugins=owners[chosen.name],
                sources=sources[chosen.name],
            )
            if cell.key in cells:
                raise RequestError(
                    f"{cell.variant} with seed {cell.seed} is asked for twice. Name each method and seed once."
                )
            cells[cell.key] = cell
    return tuple(cells.values())


def _alike(cells: Sequence[Cell], methods: Sequence[MethodChoice]) -> Iterator[str]:
    """Variants that are one method under two names, because a setting is given at its default."""
    variants = {cell.variant: chosen for cell, chosen in zip(cells, methods, strict=False)}
    several = [name for name, count in Counter(chosen.name for chosen in methods).items() if count > 1]
    repeated = {variant: chosen for variant, chosen in variants.items() if chosen.name in several}
    for (one, first), (other, second) in combinations(repeated.items(), 2):
        if first.name == second.name and first.method == second.method:
            yield f"{one} and {other} are the same, a setting being given at its default: both run."
