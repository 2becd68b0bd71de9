"""Words to cells: methods with settings, suites and tasks, model, data, seeds, protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Cell
from mtlbench.api.task import Task, TaskSuite
from mtlbench.backbones.names import check_model, is_embedded, weights_digest
from mtlbench.data.choose import open_source
from mtlbench.data.prompts import prompt_identity
from mtlbench.data.source import Source
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.planning.own_protocol import make_protocol
from mtlbench.planning.protocols import STANDARD, fields_of
from mtlbench.planning.settings import build, read_settings, split_methods
from mtlbench.plugins import load_suite, offer_of


@dataclass(frozen=True, kw_only=True)
class Request:
    """The words of a command, defaults filled in."""

    methods: str
    tasks: str
    model: str = "demo"
    data: str | None = None
    """``demo``, ``hub`` or a folder; ``None`` takes the demo for an embedded backbone and the hub for any other."""
    seeds: tuple[int, ...] = (0,)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~mtlbench.api.cell.Protocol` given explicitly; ``name`` is a named protocol to start from."""

    def to_json(self) -> dict[str, Any]:
        """The words as a JSON object, for the run folder."""
        return {
            "methods": self.methods,
            "tasks": self.tasks,
            "model": self.model,
            "data": self.data_words,
            "seeds": list(self.seeds),
            "protocol": dict(self.protocol),
        }

    @property
    def data_words(self) -> str:
        """Where rows come from, resolved; a folder as an absolute path."""
        words = self.data or ("demo" if is_embedded(self.model) else "hub")
        return words if words in ("demo", "hub") else str(Path(words).resolve())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a request means."""

    request: Request
    cells: tuple[Cell, ...]
    suites: Mapping[str, TaskSuite]
    source: Source
    notes: tuple[str, ...] = ()
    """What the one who asked should know."""

    def to_json(self) -> dict[str, Any]:
        """The words for the run folder, with the notes where there are any."""
        return {**self.request.to_json(), **({"notes": list(self.notes)} if self.notes else {})}

    @property
    def models(self) -> tuple[str, ...]:
        """The backbones of the cells."""
        return tuple(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def default_folder(self) -> Path:
        """Where a run goes when no folder is named: ``runs/<tasks>-<model>``."""
        suites = "-".join(dict.fromkeys(part.split("/")[0] for part in self.request.tasks.split(",")))
        return Path("runs") / f"{suites}-{Path(self.request.model).name}"


def make_plan(request: Request) -> Plan:
    """Check every word and lay out the cells; no data row is read and no model is loaded.

    Raises:
        RequestError: a word is unknown, a setting is wrong, data lacks a file, a split or a column.
    """
    methods = [(name, read_settings(name, words)) for name, words in split_methods(request.methods)]
    tasks, suites = resolve_tasks(request.tasks)
    words = dict(request.protocol)
    sources = words.get("sources", fields_of(words.get("name") or STANDARD).get("sources"))
    if sources:
        first, more = resolve_tasks(sources)
        both = sorted(set(first) & set(tasks))
        if both:
            raise RequestError(f"{', '.join(both)} cannot be source and target: take it out of --sources or --tasks.")
        tasks, suites = {**first, **tasks}, {**more, **suites}
        words["sources"] = ",".join(first)
    check_model(request.model)
    source = open_source(request.data_words, suites=suites)
    for task in tasks.values():
        source.check(task)
    protocol = make_protocol(
        words, data=source.identity(tuple(tasks.values())), prompts=prompt_identity(tasks), tasks=tuple(tasks)
    )
    weights = weights_digest(request.model)
    plugins_of_suites = [offer_of("tasks", name) for name in suites]
    cells: list[Cell] = []
    for seed in request.seeds:
        for name, settings in methods:
            owners = [*(offer_of("methods", member) for member in name.split("+")), *plugins_of_suites]
            cells.append(
                Cell(
                    method=name,
                    settings=settings,
                    tasks=tuple(tasks),
                    model=model_words(request.model),
                    protocol=protocol,
                    seed=seed,
                    weights=weights,
                    plugins={o.distribution: o.version for o in owners},
                )
            )
    _no_repeats(cells)
    return Plan(request=request, cells=tuple(cells), suites=suites, source=source, notes=tuple(_alike(cells)))


def join_plans(plans: Sequence[Plan], *, notes: Sequence[str] = ()) -> Plan:
    """One plan with the cells of all, each once, under the words of the first."""
    cells = {cell.key: cell for plan in plans for cell in plan.cells}
    suites = {name: suite for plan in plans for name, suite in plan.suites.items()}
    first = plans[0]
    told = tuple(dict.fromkeys([*notes, *(note for plan in plans for note in plan.notes)]))
    return Plan(request=first.request, cells=tuple(cells.values()), suites=suites, source=first.source, notes=told)


def model_words(model: str) -> str:
    """The model as a cell names it: a local folder by its absolute path, anything else as given."""
    return str(Path(model).resolve()) if not is_embedded(model) and Path(model).is_dir() else model


def resolve_tasks(words: str) -> tuple[dict[str, Task], dict[str, TaskSuite]]:
    """``"glue,superglue/rte"`` to tasks by full name, in order, and the suites they come from."""
    tasks: dict[str, Task] = {}
    suites: dict[str, TaskSuite] = {}
    for word in filter(None, (w.strip() for w in words.split(","))):
        suite_name, slash, task_name = word.partition("/")
        suite = suites.get(suite_name) or load_suite(suite_name)
        suites[suite_name] = suite
        by_name = {task.name: task for task in suite.tasks}
        if slash and task_name not in by_name:
            raise RequestError(f"Suite {suite_name!r} has no task {task_name!r}. {did_you_mean(task_name, by_name)}")
        for task in (by_name[task_name],) if slash else suite.tasks:
            tasks[f"{suite_name}/{task.name}"] = task
    if not tasks:
        raise RequestError("--tasks is empty. Name a suite such as glue, or tasks such as glue/rte,glue/sst2.")
    return tasks, suites


def _no_repeats(cells: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.key in seen:
            raise RequestError(
                f"{cell.variant} with seed {cell.seed} is asked for twice. Name each method and seed once."
            )
        seen[cell.key] = cell


def _alike(cells: Sequence[Cell]) -> Iterator[str]:
    """Variants that are one method under two names, because a setting is given at its default."""
    variants = {cell.variant: cell for cell in cells}
    several = [name for name, count in Counter(cell.method for cell in variants.values()).items() if count > 1]
    built = {v: build(cell.method, cell.settings) for v, cell in variants.items() if cell.method in several}
    for one, other in combinations(built, 2):
        if variants[one].method == variants[other].method and built[one] == built[other]:
            yield f"{one} and {other} are the same, a setting being given at its default: both run."
