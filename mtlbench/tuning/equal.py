"""A comparison in which every method is tuned with the same effort: its cells, its search, and the rows that follow.

Each method runs its default settings and settings spread over one range of learning rates on held-out training rows.
The best of them run again on further seeds, and the one with the highest mean is trained and scored as usual, beside
the default. Everything is read from records: the same command resumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mtlbench.api.cell import Cell
from mtlbench.api.method import Value
from mtlbench.api.record import Record
from mtlbench.api.tuning import STUDY, TrialScores, TunedMethod
from mtlbench.errors import RequestError
from mtlbench.executors.runner import FAILED, INTERRUPTED, OK
from mtlbench.planning.plan import Plan, make_plan
from mtlbench.planning.request import UNTRAINED, Request
from mtlbench.planning.settings import MethodChoice, read_methods
from mtlbench.store import RunFolder
from mtlbench.tuning.effort import Effort
from mtlbench.tuning.grid import common_space, rate_of, trial_settings
from mtlbench.tuning.search import RunCells, run_missing
from mtlbench.tuning.space import space_text


@dataclass(frozen=True, kw_only=True)
class MethodSearch:
    """The search of one method: its trials, known in advance."""

    choice: MethodChoice
    template: Cell
    """The cell of a trial with the method's fixed settings and the first seed."""
    trials: tuple[Mapping[str, Value], ...]
    """Searched settings by number; the first are the defaults."""
    fields: Mapping[str, str]
    """Searched settings to their domains as text."""

    def cell(self, trial: int, seed: int) -> Cell:
        """The cell of a trial on one seed."""
        return replace(self.template, settings={**self.template.settings, **self.trials[trial]}, seed=seed)


@dataclass(frozen=True, kw_only=True)
class EqualStudy:
    """The searches of all methods of one request."""

    effort: Effort
    identity: Mapping[str, object]
    """What is equal for all methods; its digest is the study's id."""
    searches: tuple[MethodSearch, ...]
    plan: Plan
    """The plan of the request: every method with its settings as given, on the seeds as given."""

    @property
    def untuned(self) -> tuple[Cell, ...]:
        """The cells of the request."""
        return self.plan.cells

    @cached_property
    def trial_cells(self) -> tuple[Cell, ...]:
        """The cells of all trials on the first seed."""
        first = self.effort.seeds[0]
        cells = [search.cell(trial, first) for search in self.searches for trial in range(len(search.trials))]
        return tuple({cell.key: cell for cell in cells}.values())

    def final_cells(self, search: MethodSearch, finalists: Sequence[int]) -> list[Cell]:
        """The cells of some trials on the further seeds."""
        return [search.cell(trial, seed) for trial in finalists for seed in self.effort.seeds[1:]]

    def tuned_cells(self, found: Sequence[TunedMethod]) -> tuple[Cell, ...]:
        """The cells of the settings that were found, on the seeds of the request. Where the defaults won there are
        none: the cells of the request are them."""
        by_variant = {one.variant: one for one in found if one.winner is not None and one.winner.settings}
        return tuple(
            replace(
                cell,
                settings=dict(by_variant[cell.variant].settings),
                protocol=replace(cell.protocol, tuning=STUDY + by_variant[cell.variant].study),
            )
            for cell in self.untuned
            if cell.variant in by_variant
        )

    def expected(self, done: Container[str]) -> tuple[Cell, ...]:
        """Cells that cost what is left of the comparison, given the keys of trials with a record. Their settings are
        the defaults, as those that will run depend on results."""
        cells = list(self.untuned)
        for search in self.searches:
            numbers = range(len(search.trials))
            ran = sum(search.cell(number, seed).key in done for number in numbers for seed in self.effort.seeds)
            cells += [replace(search.template, seed=seed) for seed in range(max(0, self.effort.cells - ran))]
            cells += [
                replace(cell, protocol=replace(cell.protocol, tuning=STUDY + "0" * 12))
                for cell in self.untuned
                if cell.variant == search.template.variant
            ]
        return tuple(cells)


def make_study(request: Request, effort: Effort) -> EqualStudy:
    """The study of a request, checked.

    Raises:
        RequestError: a method has no field to search, the protocol is of a trial or of another study, or the request
            cannot be planned on held-out training rows.
    """
    protocol = request.protocol
    for name in ("tuning", "eval_from_train"):
        if protocol.get(name):
            raise RequestError(f"--{name.replace('_', '-')} cannot be given with --tune, which sets it for its trials.")
    plan = make_plan(request)
    rows = min(protocol.get("eval_rows") or effort.score_rows, effort.score_rows)
    trial = {**protocol, "eval_from_train": effort.share, "eval_rows": rows, "tuning": "trial", "probe": ""}
    choices = {_variant(plan.cells, choice): choice for choice in read_methods(request.methods)}
    tuned = [choice for choice in choices.values() if choice.name != UNTRAINED]
    if not tuned:
        raise RequestError(f"--tune: there is nothing to tune in --methods {request.methods!r}.")
    templates = {
        cell.variant: cell for cell in make_plan(replace(request, protocol=trial, seeds=effort.seeds[:1])).cells
    }
    searches = []
    for variant, choice in choices.items():
        if choice.name == UNTRAINED:
            continue
        space = common_space(choice, effort)
        searches.append(
            MethodSearch(
                choice=choice,
                template=templates[variant],
                trials=tuple(trial_settings(space, effort.trials)),
                fields={name: space_text(domain) for name, domain in space.fields.items()},
            )
        )
    first = plan.cells[0]
    return EqualStudy(
        effort=effort,
        identity=effort.identity(protocol=first.protocol, tasks=first.tasks, model=first.model, weights=first.weights),
        searches=tuple(searches),
        plan=plan,
    )


def run_searches(
    study: EqualStudy, folder: RunFolder, run_cells: RunCells, *, tell: Callable[[str], None]
) -> tuple[list[TunedMethod], int]:
    """Run what has no record, and choose; gives the searches that have a result and an exit code.

    The code is 0 where every method has a result, 130 when interrupted, else 1.
    """
    code = run_missing(folder, run_cells, study.trial_cells)
    if code == INTERRUPTED:
        return [], code
    finals: list[Cell] = []
    for search in study.searches:
        finals += study.final_cells(search, _finalists(study, search, folder))
    if (code := run_missing(folder, run_cells, finals)) == INTERRUPTED:
        return [], code
    found = [found_by(study, search, folder) for search in study.searches]
    for one in found:
        tell(result_line(one))
    done = [one for one in found if one.winner is not None]
    return done, OK if len(done) == len(found) else FAILED


def found_by(study: EqualStudy, search: MethodSearch, folder: RunFolder) -> TunedMethod:
    """What the records of a method's trials say."""
    trials = []
    for number, settings in enumerate(search.trials):
        cells = {seed: search.cell(number, seed) for seed in study.effort.seeds}
        scores = {seed: score for seed, cell in cells.items() if (score := _score(folder.record(cell.key))) is not None}
        rate = rate_of(search.choice.method, settings, search.template.protocol.learning_rate)
        if scores:
            trials.append(TrialScores(settings=settings, learning_rate=rate, scores=scores))
    return TunedMethod(
        effort=dict(study.identity),
        method=search.template.method,
        fixed=dict(search.template.settings),
        variant=search.template.variant,
        fields=dict(search.fields),
        trials=tuple(trials),
        finals=study.effort.seeds,
    )


def result_line(found: TunedMethod) -> str:
    """One line for a terminal."""
    best = found.winner
    if best is None:
        return f"{found.variant}: no trial has scores on all {len(found.finals)} seeds, so it has no tuned row."
    settings = ", ".join(f"{name}={value}" for name, value in best.settings.items()) or "the default settings"
    default = next((trial for trial in found.trials if not trial.settings), None)
    first = found.finals[0]
    compared = f"; the default {default.scores[first]:.1f} on one" if default and first in default.scores else ""
    return f"{found.variant}: {settings}, {best.mean:.1f} on held-out rows of {len(best.scores)} seeds{compared}"


def _finalists(study: EqualStudy, search: MethodSearch, folder: RunFolder) -> list[int]:
    """Numbers of the best trials on the first seed."""
    first = study.effort.seeds[0]
    scores = {
        number: score
        for number in range(len(search.trials))
        if (score := _score(folder.record(search.cell(number, first).key))) is not None
    }
    return sorted(scores, key=lambda number: (-scores[number], number))[: study.effort.finalists]


def _score(record: Record | None) -> float | None:
    score = record.average if record is not None and record.status == "ok" else None
    return score if score is not None and math.isfinite(score) else None


def _variant(cells: Sequence[Cell], choice: MethodChoice) -> str:
    wanted = (choice.name, dict(choice.settings))
    return next(cell.variant for cell in cells if (cell.method, dict(cell.settings)) == wanted)
