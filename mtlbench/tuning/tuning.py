"""Words to a tuning: what is searched, on which cells, with what effort. Every wrong word is refused here."""

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
from mtlbench.tuning.pruning import SHARES, check_rule
from mtlbench.tuning.space import Budget, Space, budget_named, search_space

MOST_TRIALS = 10_000
"""Seeds of the trials of two studies with different seeds differ up to this many trials."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of the command, as given; ``None`` takes the budget's."""

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
    """Fields of the protocol given explicitly; they win over the budget's."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The words other than those of the protocol."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.name != "protocol")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A checked request to tune one method."""

    words: Words
    budget: Budget
    space: Space
    plan: Plan
    """One cell: the method with its fixed settings, scored on training rows."""
    training: Mapping[str, Any]
    """Protocol fields that the run with the best settings shares with the trials."""

    @property
    def trials(self) -> int:
        return self.budget.trials if self.words.trials is None else self.words.trials

    @property
    def at_once(self) -> int:
        return self.budget.at_once if self.words.at_once is None else self.words.at_once

    @property
    def template(self) -> Cell:
        """The cell of a trial, but for the searched settings and the seed."""
        return self.plan.cells[0]

    @property
    def effort(self) -> str:
        """What :attr:`Protocol.tuning` says of cells that use the result."""
        count = f"{self.trials} trial{'' if self.trials == 1 else 's'}"
        pruned = "" if self.words.pruning == "none" else f":{self.words.pruning}"
        return f"tpe:{self.words.budget}:{count}{pruned}"

    @cached_property
    def protocols(self) -> tuple[Protocol, ...]:
        """The trials' protocol for each share of the budget, smallest first; shares that round to one are one."""
        whole = self.template.protocol
        return tuple(dict.fromkeys(_shrunk(whole, share) for share in SHARES[self.words.pruning]))

    def cell(self, number: int, settings: Mapping[str, Value], *, rung: int) -> Cell:
        """Trial ``number`` at a share of the budget. Each trial has a seed of its own, the same at every share."""
        template = self.template
        return dataclasses.replace(
            template,
            settings={**template.settings, **settings},
            seed=self.words.seed * MOST_TRIALS + number,
            protocol=self.protocols[rung],
        )

    def run_command(self, settings: Mapping[str, Value]) -> str:
        """The command that trains with ``settings`` and scores the evaluation split."""
        words, request = self.words, self.plan.request
        variant = dataclasses.replace(self.template, settings={**self.template.settings, **settings}).variant
        parts = ["mtlbench", "run", "--methods", variant, "--tasks", words.tasks, "--model", request.model]
        parts += ["--data", words.data] if words.data else []
        for name, value in {**self.training, "tuning": self.effort}.items():
            option = "protocol" if name == "name" else name.replace("_", "-")
            parts += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", f"{value}"]
        return shlex.join(parts)

    @property
    def default_folder(self) -> Path:
        """Where a tuning goes when no folder is named: beside that of a run, so that its records stay apart."""
        folder = self.plan.default_folder
        return folder.with_name(f"{folder.name}-tuning")


def make_tuning(words: Words) -> Tuning:
    """Check every word.

    Raises:
        RequestError: a word is unknown or does not fit, with what to write instead.
    """
    budget = budget_named(words.budget)
    check_rule(words.pruning)
    for name, count, most in (("trials", words.trials, MOST_TRIALS), ("at-once", words.at_once, MOST_TRIALS)):
        if count is not None and not 1 <= count <= most:
            raise RequestError(f"--{name} must be a whole number from 1 to {most}, got {count}.")
    if words.seed < 0:
        raise RequestError(f"--seed must not be negative, got {words.seed}.")
    methods = split_methods(words.method)
    if len(methods) > 1:
        raise RequestError(
            f"--method {words.method!r}: one method is tuned at a time, so that each gets a whole budget."
        )
    given = {name: value for name, value in words.protocol.items() if name not in ("tuning", "eval_from_train")}
    training = {**_without(budget.training, given), **given}
    share = words.protocol.get("eval_from_train", budget.share)
    if not 0 < share < 1:
        raise RequestError(
            f"--eval-from-train must be above 0 and below 1 for tuning, got {share}: trials are scored on it."
        )
    trial = {"eval_rows": budget.score_rows, **training, "eval_from_train": share, "tuning": "trial"}
    request = Request(methods=words.method, tasks=words.tasks, model=words.model, data=words.data, protocol=trial)
    plan = make_plan(request)
    return Tuning(
        words=words, budget=budget, space=search_space(*methods[0], words.searches), plan=plan, training=training
    )


def _without(budget: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Steps given in words replace the budget's epochs."""
    return {name: value for name, value in budget.items() if not (name == "epochs" and "steps" in given)}


def _shrunk(protocol: Protocol, share: float) -> Protocol:
    if share == 1:
        return protocol
    if protocol.steps is not None:
        return dataclasses.replace(protocol, name="", steps=max(1, round(protocol.steps * share)))
    return dataclasses.replace(protocol, name="", epochs=round(protocol.epochs * share, 6))
