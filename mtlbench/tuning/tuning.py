"""From options to a tuning request: search space, cells and budget. All options are checked here."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.method import Value
from mtlbench.errors import RequestError
from mtlbench.planning.plan import Plan, make_plan
from mtlbench.planning.request import Request
from mtlbench.planning.settings import split_methods
from mtlbench.tuning.effort import MOST_TRIALS
from mtlbench.tuning.pruning import SHARES, check_rule
from mtlbench.tuning.space import Budget, Space, budget_named, search_space


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """The options of the command; ``None`` takes the value of the budget."""

    method: str
    tasks: str
    model: str = "demo"
    data: str | None = None
    budget: str = "standard"
    trials: int | None = None
    at_once: int | None = None
    pruning: str = "none"
    searches: tuple[str, ...] = ()
    seed: int = 0
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Explicit protocol fields, which override those of the budget."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The options that are not protocol fields."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.name != "protocol")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A checked request to tune one method."""

    options: TuningOptions
    budget: Budget
    space: Space
    plan: Plan
    """One cell: the method with its fixed settings, scored on held-out training examples."""
    training: Mapping[str, Any]
    """Protocol fields that the run with the best settings shares with the trials."""

    @property
    def trials(self) -> int:
        return self.budget.trials if self.options.trials is None else self.options.trials

    @property
    def at_once(self) -> int:
        return self.budget.at_once if self.options.at_once is None else self.options.at_once

    @property
    def template(self) -> Cell:
        """The cell of a trial, without the searched settings and the seed."""
        return self.plan.cells[0]

    @property
    def effort(self) -> str:
        """Name of the search, its budget, trials and pruning."""
        count = f"{self.trials} trial{'' if self.trials == 1 else 's'}"
        pruned = "" if self.options.pruning == "none" else f":{self.options.pruning}"
        return f"tpe:{self.options.budget}:{count}{pruned}"

    @cached_property
    def protocols(self) -> tuple[Protocol, ...]:
        """The trials' protocol for each share of the budget, smallest first, without duplicates from rounding."""
        whole = self.template.protocol
        return tuple(dict.fromkeys(_shrunk(whole, share) for share in SHARES[self.options.pruning]))

    def cell(self, number: int, settings: Mapping[str, Value], *, rung: int) -> Cell:
        """Trial ``number`` at a share of the budget. Each trial has its own seed, the same at every share."""
        template = self.template
        return dataclasses.replace(
            template,
            settings={**template.settings, **settings},
            seed=self.options.seed * MOST_TRIALS + number,
            protocol=self.protocols[rung],
        )

    @property
    def identity(self) -> Mapping[str, Any]:
        """What is equal for all methods of a study, as JSON: the effort, and what the trials share."""
        cell = self.template
        return {
            "level": self.effort,
            "tasks": list(cell.tasks),
            "model": cell.weights or cell.model,
            "protocol": cell.protocol.identity(),
        }

    def run_command(self, settings: Mapping[str, Value], *, search: Path) -> str:
        """The command that trains with ``settings`` and scores the evaluation split; ``search`` is the file of
        the search that found them."""
        options, request = self.options, self.plan.request
        variant = dataclasses.replace(self.template, settings={**self.template.settings, **settings}).variant
        argv = ["mtlbench", "run", "--methods", variant, "--tasks", options.tasks, "--model", request.model]
        argv += ["--data", options.data] if options.data else []
        for name, value in {**self.training, "tuning": search}.items():
            option = "protocol" if name == "name" else name.replace("_", "-")
            argv += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", f"{value}"]
        return shlex.join(argv)

    @property
    def default_folder(self) -> Path:
        """Default run folder: next to that of a run, so that the records stay apart."""
        folder = self.plan.default_folder
        return folder.with_name(f"{folder.name}-tuning")


def make_tuning(options: TuningOptions) -> Tuning:
    """Check every option.

    Raises:
        RequestError: an option is unknown or invalid, with what to write instead.
    """
    budget = budget_named(options.budget)
    check_rule(options.pruning)
    for name, count, most in (("trials", options.trials, MOST_TRIALS), ("at-once", options.at_once, MOST_TRIALS)):
        if count is not None and not 1 <= count <= most:
            raise RequestError(f"--{name} must be a whole number from 1 to {most}, got {count}.")
    if options.seed < 0:
        raise RequestError(f"--seed must not be negative, got {options.seed}.")
    methods = split_methods(options.method)
    if len(methods) > 1:
        raise RequestError(
            f"--method {options.method!r}: one method is tuned at a time, so that each gets a full budget."
        )
    explicit = {name: value for name, value in options.protocol.items() if name not in ("tuning", "eval_from_train")}
    training = {**_without(budget.training, explicit), **explicit}
    share = options.protocol.get("eval_from_train", budget.share)
    if not 0 < share < 1:
        raise RequestError(
            f"--eval-from-train must be above 0 and below 1 for tuning, got {share}: trials are scored on it."
        )
    trial = {"eval_rows": budget.score_rows, **training, "eval_from_train": share, "tuning": "trial"}
    request = Request(
        methods=options.method, tasks=options.tasks, model=options.model, data=options.data, protocol=trial
    )
    plan = make_plan(request)
    return Tuning(
        options=options, budget=budget, space=search_space(*methods[0], options.searches), plan=plan, training=training
    )


def _without(budget: Mapping[str, Any], explicit: Mapping[str, Any]) -> dict[str, Any]:
    """An explicit ``steps`` replaces the ``epochs`` of the budget."""
    return {name: value for name, value in budget.items() if not (name == "epochs" and "steps" in explicit)}


def _shrunk(protocol: Protocol, share: float) -> Protocol:
    if share == 1:
        return protocol
    if protocol.steps is not None:
        return dataclasses.replace(protocol, name="", steps=max(1, round(protocol.steps * share)))
    return dataclasses.replace(protocol, name="", epochs=round(protocol.epochs * share, 6))
