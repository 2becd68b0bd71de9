"""The search loop: suggest trials, run their cells, prune, repeat. All its state is in the run folder's records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mtlbench.api.cell import Cell
from mtlbench.api.method import Value
from mtlbench.executors.runner import FAILED, INTERRUPTED, OK
from mtlbench.store import RunFolder
from mtlbench.tuning.effort import MOST_TRIALS
from mtlbench.tuning.pruning import promoted
from mtlbench.tuning.sampler import in_space, suggest
from mtlbench.tuning.trials import Trial, best_of
from mtlbench.tuning.tuning import Tuning

MAX_FAILED = 5
"""The search ends when the first trials, at least this many, have all failed."""

RunCells = Callable[[Sequence[Cell]], int]
"""Runs cells until each has a record or no worker is left; returns an exit code of :mod:`mtlbench.executors.runner`."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a search."""

    trials: tuple[Trial, ...]
    """By number; the last ones may be unfinished."""
    code: int
    """0 when all trials are settled and at least one is complete, 130 when interrupted, else 1."""

    @property
    def best(self) -> Trial | None:
        return best_of(self.trials)


def search(tuning: Tuning, folder: RunFolder, run_cells: RunCells, *, on_settled: Callable[[Trial], None]) -> Outcome:
    """Run the trials that have no record; a second call with the same folder resumes.

    ``on_settled`` is called for each settled trial, including those settled by an earlier call. Each call retries
    failed cells. The search ends when the first five trials all fail.
    """
    done: list[Trial] = []
    for first in range(0, tuning.trials, tuning.at_once):
        numbers = range(first, min(first + tuning.at_once, tuning.trials))
        batch, code = _run_batch(tuning, folder, run_cells, _suggest(tuning, folder, done, numbers), done)
        done += batch
        for trial in batch:
            if trial.state != "running":
                on_settled(trial)
        if code == INTERRUPTED or any(trial.state == "running" for trial in batch):
            return Outcome(trials=tuple(done), code=INTERRUPTED if code == INTERRUPTED else FAILED)
        if len(done) >= MAX_FAILED and all(trial.state == "failed" for trial in done):
            break
    return Outcome(trials=tuple(done), code=OK if best_of(done) else FAILED)


def _suggest(tuning: Tuning, folder: RunFolder, done: Sequence[Trial], numbers: Sequence[int]) -> list[Trial]:
    """The trials of a batch: read from their records, or suggested from the results of earlier batches."""
    recorded = _recorded(tuning, folder)
    batch: list[Trial] = []
    for number in numbers:
        settings = recorded.get(number)
        if settings is None:
            settings = suggest(
                tuning.space, [*done, *batch], seed=tuning.options.seed, number=number, startup=tuning.budget.startup
            )
        batch.append(Trial(number=number, settings=settings))
    return batch


def _recorded(tuning: Tuning, folder: RunFolder) -> Mapping[int, Mapping[str, Value]]:
    """Number to settings of the trials of this search that have a record."""
    settings_of: dict[int, Mapping[str, Value]] = {}
    for key, record in sorted(folder.records().items()):
        cell = record.cell
        number = cell.seed - tuning.options.seed * MOST_TRIALS
        if not 0 <= number < MOST_TRIALS or not set(tuning.space.fields) <= set(cell.settings):
            continue
        settings = {name: cell.settings[name] for name in tuning.space.fields}
        keys = {tuning.cell(number, settings, rung=rung).key for rung in range(len(tuning.protocols))}
        if key in keys and in_space(tuning.space, Trial(number=number, settings=settings)):
            settings_of.setdefault(number, settings)
    return settings_of


def _run_batch(
    tuning: Tuning, folder: RunFolder, run_cells: RunCells, batch: Sequence[Trial], done: Sequence[Trial]
) -> tuple[list[Trial], int]:
    """Run a batch at each share of the budget; trials without a record at the end keep the state "running"."""
    trials, code = list(batch), OK
    for rung in range(len(tuning.protocols)):
        active = [at for at, trial in enumerate(trials) if trial.state == "running"]
        cells = [tuning.cell(trials[at].number, trials[at].settings, rung=rung) for at in active]
        code = run_missing(folder, run_cells, cells)
        for at, cell in zip(active, cells, strict=True):
            trials[at] = _with_record(tuning, folder, trials[at], cell, [*done, *trials[:at]], rung=rung)
        if any(len(trial.records) == rung for trial in trials if trial.state == "running"):
            break
    return trials, code


def run_missing(folder: RunFolder, run_cells: RunCells, cells: Sequence[Cell]) -> int:
    """Run the cells without a record, and failed ones again."""
    missing = [cell for cell in cells if (record := folder.record(cell.key)) is None or record.status == "failed"]
    return run_cells(missing) if missing else OK


def _with_record(
    tuning: Tuning, folder: RunFolder, trial: Trial, cell: Cell, earlier: Sequence[Trial], *, rung: int
) -> Trial:
    record = folder.record(cell.key)
    if record is None:
        return trial
    trial = replace(trial, records=(*trial.records, record))
    if record.status != "ok" or record.average is None:
        return replace(trial, state="failed")
    if rung + 1 == len(tuning.protocols):
        return replace(trial, state="complete")
    scores = [other.scores[rung] for other in earlier if len(other.scores) > rung]
    return trial if promoted(tuning.options.pruning, record.average, scores) else replace(trial, state="pruned")
