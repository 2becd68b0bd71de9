"""The search: ask, run cells, judge, again. Everything it knows it reads from the records of the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mtlbench.api.cell import Cell
from mtlbench.api.method import Value
from mtlbench.executors.runner import FAILED, INTERRUPTED, OK
from mtlbench.store import RunFolder
from mtlbench.tuning.pruning import goes_on
from mtlbench.tuning.sampler import in_space, suggest
from mtlbench.tuning.trials import Trial, best_of
from mtlbench.tuning.tuning import MOST_TRIALS, Tuning

HOPELESS = 5
"""So many failed trials and no other end the search."""

RunCells = Callable[[Sequence[Cell]], int]
"""Runs cells until each has a record or no worker is left; gives an exit code of :mod:`mtlbench.executors.runner`."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search found."""

    trials: tuple[Trial, ...]
    """By number; the last ones may be unfinished."""
    code: int
    """0 with every trial settled and one complete at least, 1 otherwise, 130 interrupted."""

    @property
    def best(self) -> Trial | None:
        return best_of(self.trials)


def search(tuning: Tuning, folder: RunFolder, run_cells: RunCells, *, tell: Callable[[Trial], None]) -> Outcome:
    """Run the trials that have no record. Called again with the same folder it goes on where it was.

    ``tell`` hears of each trial once it is settled, also of those found settled. Failed cells are tried again by each
    call. When the first five fail and nothing else is known, nothing more is asked.
    """
    done: list[Trial] = []
    for first in range(0, tuning.trials, tuning.at_once):
        numbers = range(first, min(first + tuning.at_once, tuning.trials))
        batch, code = _climb(tuning, folder, run_cells, _ask(tuning, folder, done, numbers), done)
        done += batch
        for trial in batch:
            if trial.state != "running":
                tell(trial)
        if code == INTERRUPTED or any(trial.state == "running" for trial in batch):
            return Outcome(trials=tuple(done), code=INTERRUPTED if code == INTERRUPTED else FAILED)
        if len(done) >= HOPELESS and all(trial.state == "failed" for trial in done):
            break
    return Outcome(trials=tuple(done), code=OK if best_of(done) else FAILED)


def _ask(tuning: Tuning, folder: RunFolder, done: Sequence[Trial], numbers: Sequence[int]) -> list[Trial]:
    """The trials of a batch: as their records say, or suggested from what earlier batches gave."""
    recorded = _recorded(tuning, folder)
    batch: list[Trial] = []
    for number in numbers:
        settings = recorded.get(number)
        if settings is None:
            settings = suggest(
                tuning.space, [*done, *batch], seed=tuning.words.seed, number=number, startup=tuning.budget.startup
            )
        batch.append(Trial(number=number, settings=settings))
    return batch


def _recorded(tuning: Tuning, folder: RunFolder) -> Mapping[int, Mapping[str, Value]]:
    """Number to settings of the trials of this tuning that left a record, in this or an earlier call."""
    found: dict[int, Mapping[str, Value]] = {}
    for key, record in sorted(folder.records().items()):
        cell = record.cell
        number = cell.seed - tuning.words.seed * MOST_TRIALS
        if not 0 <= number < MOST_TRIALS or not set(tuning.space.fields) <= set(cell.settings):
            continue
        settings = {name: cell.settings[name] for name in tuning.space.fields}
        keys = {tuning.cell(number, settings, rung=rung).key for rung in range(len(tuning.protocols))}
        if key in keys and in_space(tuning.space, Trial(number=number, settings=settings)):
            found.setdefault(number, settings)
    return found


def _climb(
    tuning: Tuning, folder: RunFolder, run_cells: RunCells, batch: Sequence[Trial], done: Sequence[Trial]
) -> tuple[list[Trial], int]:
    """Take a batch through the shares of the budget; trials without a record at the end are left running."""
    trials, code = list(batch), OK
    for rung in range(len(tuning.protocols)):
        going = [at for at, trial in enumerate(trials) if trial.state == "running"]
        cells = [tuning.cell(trials[at].number, trials[at].settings, rung=rung) for at in going]
        code = _run_missing(folder, run_cells, cells)
        for at, cell in zip(going, cells, strict=True):
            trials[at] = _judged(tuning, folder, trials[at], cell, [*done, *trials[:at]], rung=rung)
        if any(len(trial.records) == rung for trial in trials if trial.state == "running"):
            break
    return trials, code


def _run_missing(folder: RunFolder, run_cells: RunCells, cells: Sequence[Cell]) -> int:
    wanted = [cell for cell in cells if (found := folder.record(cell.key)) is None or found.status == "failed"]
    return run_cells(wanted) if wanted else OK


def _judged(
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
    return trial if goes_on(tuning.words.pruning, record.average, scores) else replace(trial, state="pruned")
