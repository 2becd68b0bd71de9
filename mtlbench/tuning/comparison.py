"""``mtlbench run --tune``: defaults, the search of every method, and the tuned rows, into one run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Cell
from mtlbench.api.executor import Executor
from mtlbench.api.tuning import TunedMethod
from mtlbench.executors.runner import INTERRUPTED, Session
from mtlbench.planning.plan import Plan, join_plans
from mtlbench.planning.request import Requests
from mtlbench.store import RunFolder
from mtlbench.tuning.effort import Effort
from mtlbench.tuning.equal import EqualStudy, make_study, run_searches

TRIALS = "tuning"
"""Folder of the trials in a run folder; it is a run folder of its own."""


@dataclass(frozen=True, kw_only=True)
class TunedPlan:
    """The studies of a request, one for each of its parts, and the plan of the default rows."""

    plan: Plan
    effort: Effort
    studies: tuple[EqualStudy, ...]

    def expected(self, folder: Path) -> tuple[Cell, ...]:
        """Cells that cost what is left of the comparison in a run folder."""
        trials = folder / TRIALS
        done = RunFolder(trials).records() if trials.is_dir() else {}
        return tuple({cell.key: cell for study in self.studies for cell in study.expected(done)}.values())

    def lines(self) -> list[str]:
        """What the search adds to the plan, for a terminal."""
        searches = [search for study in self.studies for search in study.searches]
        low, high = self.effort.rates
        several = ", ".join(
            f"{search.template.variant} {len(search.fields)} ({', '.join(search.fields)})"
            for search in searches
            if len(search.fields) > 1
        )
        methods = "method" if len(searches) == 1 else "methods"
        seeds = len({cell.seed for cell in self.plan.cells})
        return [
            f"tuning ({self.effort.level}): {len(searches)} {methods} x {self.effort.trials} trials, the default among "
            f"them, learning rates from {low:g} to {high:g}, on {self.effort.share:.0%} of the training rows",
            f"  then the best {self.effort.finalists} of each on {self.effort.repeats} such seeds: at most "
            f"{len(searches) * self.effort.cells} cells, and {len(searches) * seeds} for the tuned rows",
            *([f"  more than one searched field: {several}"] if several else []),
        ]


def plan_tuned(requests: Requests, effort: Effort) -> TunedPlan:
    """Check and lay out every part of a request.

    Raises:
        RequestError: as :func:`make_study` raises it.
    """
    studies = tuple(make_study(part, effort) for part in requests.parts)
    plan = join_plans([study.plan for study in studies], notes=requests.notes)
    return TunedPlan(plan=plan, effort=effort, studies=studies)


def run_tuned(
    tuned: TunedPlan,
    folder: RunFolder,
    executor: Executor,
    observers: Mapping[str, object],
    *,
    tell: Callable[[str], None],
    **options: Any,
) -> int:
    """Run the defaults, the searches and the tuned rows; returns the exit code of a run.

    ``options`` are those of :class:`~mtlbench.executors.runner.Session`. What has a record is not run again.
    """
    words = {**tuned.plan.to_json(), "tune": {"level": tuned.effort.level, "trials": tuned.effort.trials}}
    defaults = tuned.plan.cells
    code = _run(folder, words, defaults, executor, observers, **options)
    if code == INTERRUPTED:
        return code
    trials = RunFolder(folder.path / TRIALS)
    trials.preflight()
    found: list[TunedMethod] = []
    cells = list(defaults)
    for study in tuned.studies:
        with Session(trials, executor, observers, at_once=len(study.trial_cells), **options) as session:

            def run(some: Sequence[Cell], session: Session = session) -> int:
                return session.run(trials.put_request({**words, **trials.models_in(some)}, some), some)

            searched, of_search = run_searches(study, trials, run, tell=tell)
        if of_search == INTERRUPTED:
            return of_search
        code = max(code, of_search)
        found += searched
        cells += study.tuned_cells(searched)
    folder.put_searches(found)
    return max(code, _run(folder, words, cells, executor, observers, **options))


def _run(
    folder: RunFolder,
    words: Mapping[str, Any],
    cells: Sequence[Cell],
    executor: Executor,
    observers: Mapping[str, object],
    **options: Any,
) -> int:
    known = folder.known_as(cells)
    with Session(folder, executor, observers, **options) as session:
        return session.run(folder.put_request({**words, **folder.models_in(cells)}, known), known)
