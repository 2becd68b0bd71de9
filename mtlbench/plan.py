"""Words to cells: methods with settings, suites and tasks, model, data, seeds, protocol, presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.task import Task, TaskSuite
from mtlbench.data.choose import open_source
from mtlbench.data.source import Source
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.mixing import parse_mixing
from mtlbench.models import check_model, is_embedded, weights_digest
from mtlbench.plugins import load_method, load_suite, offer_of, offers
from mtlbench.settings import read_settings, split_methods
from mtlbench.tables import one_line


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
    """Fields of :class:`Protocol` given explicitly."""

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
    check_model(request.model)
    source = open_source(request.data_words, suites=suites)
    for task in tasks.values():
        source.check(task)
    protocol = make_protocol(request.protocol, data=source.identity(tuple(tasks.values())))
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
    return Plan(request=request, cells=tuple(cells), suites=suites, source=source)


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


def make_protocol(words: Mapping[str, Any], *, data: str) -> Protocol:
    """The protocol with these fields set and every value checked."""
    known = {f.name for f in fields(Protocol)} - {"data", "prompts"}
    for name in words:
        if name not in known:
            raise RequestError(f"The protocol has no field {name!r}. {did_you_mean(name, known)}")
    protocol = replace(Protocol(), **words, data=data, prompts=f"lm_eval {metadata.version('lm_eval')}")
    _check_ranges(protocol)
    return protocol


_AT_LEAST: dict[str, float] = {
    "max_length": 8, "train_rows": 1, "eval_rows": 1, "steps": 1, "batch_size": 1, "micro_batch": 1,
    "evals_per_run": 0, "patience": 1, "weight_decay": 0, "clip": 0, "warmup": 0,
}  # fmt: skip
_OPTIONS = {
    "schedule": ("cosine", "linear", "constant"),
    "dtype": ("auto", "float32", "bfloat16"),
    "attention": ("sdpa", "eager"),
}


def _check_ranges(protocol: Protocol) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(protocol, name)
        if value is not None and not value >= least:
            raise RequestError(f"{name} must be at least {least:g}, got {value}.")
    for name, options in _OPTIONS.items():
        value = getattr(protocol, name)
        if value not in options:
            raise RequestError(
                f"{name} must be one of {', '.join(options)}, got {value!r}. {did_you_mean(value, options)}"
            )
    if not 0 < protocol.learning_rate < 100:
        raise RequestError(f"learning_rate must be above 0, got {protocol.learning_rate}.")
    if not 0 < protocol.epochs < 1e6:
        raise RequestError(f"epochs must be above 0, got {protocol.epochs}.")
    if not 0 <= protocol.eval_from_train < 1:
        raise RequestError(f"eval_from_train is a share of the training rows below 1, got {protocol.eval_from_train}.")
    if not 0 < protocol.held_out < 0.5:
        raise RequestError(f"held_out must be above 0 and below 0.5, got {protocol.held_out}.")
    if not protocol.warmup < 1:
        raise RequestError(f"warmup is a share of the steps below 1, got {protocol.warmup}.")
    if protocol.micro_batch is not None and protocol.batch_size % protocol.micro_batch:
        raise RequestError(f"micro_batch {protocol.micro_batch} must divide batch_size {protocol.batch_size}.")
    parse_mixing(protocol.mixing)
    if not protocol.tuning or one_line(protocol.tuning, limit=80) != protocol.tuning:
        raise RequestError(f"tuning must be one line of at most 80 characters, got {protocol.tuning!r}.")


def preset(name: str) -> Mapping[str, Any]:
    """The words of a named request, such as ``glue/quick``: of the suite or the method that its first part names."""
    first = name.partition("/")[0]
    suites, methods = offers("tasks"), offers("methods")
    if first in methods and first not in suites:
        known = dict(load_method(first).presets)
    else:
        known = {}
        for suite in [first] if first in suites else suites:
            known.update(load_suite(suite).presets)
    if name not in known:
        raise RequestError(f"Unknown preset {name!r}. {did_you_mean(name, known)}")
    return known[name]


def preset_reports(name: str | None) -> str | None:
    """Reports that a preset ends in, as ``--as`` takes them."""
    return preset(name).get("reports") if name else None


def _no_repeats(cells: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.key in seen:
            raise RequestError(
                f"{cell.variant} with seed {cell.seed} is asked for twice. Name each method and seed once."
            )
        seen[cell.key] = cell
