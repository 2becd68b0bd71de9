"""The values a report renders: numbers over seeds, marks, notes. Names and messages are single printable lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.record import Record
from mtlbench.api.tuning import TunedMethod
from mtlbench.text import seeds_label

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AT_MAJORITY = "at or below the majority class"
"""Meaning of the mark of :attr:`Entry.at_majority`."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided p-value of the null hypothesis that the mean is 0."""
    seeds: int
    examples: int | None
    """Number of resampled examples; ``None`` if the interval is over seeds only."""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far the probabilities of a task's choices are from what happened; see
    :mod:`mtlbench.statistics.calibration`."""

    ece: float
    """Expected calibration error, from 0 to 1."""
    brier: float | None
    """Brier score over all choices, from 0 to 2; ``None`` where the predictions do not say which choice is right."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskAnswers:
    """The answers of a cell on one task."""

    documents: str
    """Digest of the documents, in order: cells with equal digests answered the same questions."""
    count: int
    items: Mapping[str, NDArray[np.float64]]
    """Metric to the values it aggregates: ``[rows]`` or, for tuples of numbers, ``[rows, numbers]``."""
    constant: bool
    """Whether every document got the same answer or choice index, though it is not always right."""
    unparsed: int
    """Number of generated texts in which no answer was found."""
    undefined: int
    """Number of documents with a likelihood that is NaN."""
    calibration: Calibration | None = None
    """``None`` for generated answers, and where a likelihood is undefined."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Numbers over seeds."""

    values: tuple[float, ...]
    """One per seed, at least one."""
    mean: float
    sd: float | None
    """Sample standard deviation; ``None`` with fewer than two values."""

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row's scores in one column, in percent."""

    scores: Spread
    best: bool
    """Whether no other row of the column has a higher mean. No row is best where only one has scores, or where fewer
    than two have scores of two seeds: one seed compares trained models, not methods."""
    at_majority: bool
    """Whether a constant answer would score at least as high."""
    tied: bool | None = None
    """Whether the row is not significantly worse than the best of the column; ``None`` for the best and untested."""
    interval: Interval | None = None
    """95 % interval of the mean over new seeds, and over new examples where the stored predictions allow it."""


@dataclass(frozen=True, kw_only=True)
class RowCosts:
    """Costs of a row's cells, over the seeds with scores. Times in seconds, memory in bytes."""

    trainable_parameters: Spread
    """What is left after training."""
    trainable_percent: float
    """Trainable parameters in percent of the backbone's."""
    inference_parameters: Spread
    adapter_bytes: Spread | None
    """Of the saved adapter on disk; ``None`` where nothing was saved, or records of an earlier version do not say."""
    peak_memory: Spread | None
    peak_memory_kind: str
    """``device``, ``process``, both, or empty."""
    tokens_per_second: Spread
    train_seconds: Spread
    total_seconds: Spread
    trained_at_once: Spread | None = None
    """The largest number of parameters trained at once; ``None`` where it is what is left, or is not known."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Seeds of a row without scores, all for one reason."""

    status: Literal["failed", "skipped", "missing"]
    seeds: tuple[int, ...]
    kind: str
    """Class of the failure, ``refused``, or empty for a missing cell."""
    message: str
    next_step: str

    def __str__(self) -> str:
        return f"{seeds_label(self.seeds)} {self.status}: " + ": ".join(filter(None, (self.kind, self.message)))


@dataclass(frozen=True, kw_only=True)
class ScoreDifference:
    """A row minus the reference in one column, in points, over the seeds that both have."""

    points: float
    interval: Interval | None = None
    """95 % interval of the difference."""
    p: float | None = None
    """Two-sided, corrected over the rows of the column; with one seed it is valid on these examples only."""

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at the 5 % level for methods: over two seeds or more."""
        return self.p is not None and self.p <= 0.05 and self.interval is not None and self.interval.seeds > 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A row compared with the table's reference."""

    seeds: tuple[int, ...]
    """Seeds that both have."""
    differences: Mapping[str, ScoreDifference]
    """Full task name to difference, at least one; tasks that one of them lacks are omitted."""
    average: ScoreDifference | None
    gain: float | None
    """Relative multi-task gain in percent: the mean over tasks of the difference by the reference's score (delta-m of
    Maninis et al. 2019, eq. 4); ``None`` where a task is missing or the reference scores 0 or less on one."""
    worst: str
    """Task with the lowest difference."""
    worse: tuple[str, ...]
    """Tasks on which the row's mean is below the reference's: negative transfer."""
    rank_p: float | None = None
    """Two-sided p that the mean rank over tasks is the reference's, over seeds, corrected over the rows."""
    improvement: float | None = None
    """Probability in percent that a run of the row beats one of the reference on a random task."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """The reason why a run, or one of its tasks, is degenerate."""

    seed: int
    task: str | None
    """Full name, or ``None`` where it holds for the whole run."""
    kind: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method variant of one source of its code, over its seeds."""

    label: str
    """The variant; with versions, or digests of its source, where a table holds it more than once."""
    variant: str
    plugins: Mapping[str, str]
    records: tuple[Record, ...]
    """By seed."""
    missing: tuple[Cell, ...]
    """Expected cells without a record, by seed."""
    seeds: tuple[int, ...]
    """Seeds with scores."""
    entries: Mapping[str, Entry]
    """Full task name to scores; tasks without any are omitted."""
    average: Entry | None
    """Mean over all tasks, computed per seed; seeds that lack a task are omitted."""
    costs: RowCosts | None
    problems: tuple[Problem, ...]
    average_seeds: tuple[int, ...] = ()
    """Seeds behind :attr:`average`."""
    calibration: Mapping[int, Mapping[str, Calibration]] = field(default_factory=dict)
    """Seed to full task name to calibration, where the stored predictions give it."""
    flags: tuple[Flag, ...] = ()
    """By seed, then in the order of tasks."""
    rank: float | None = None
    """Mean rank over tasks, 1 is best, among the rows with scores of every task."""
    iqm: Interval | None = None
    """Interquartile mean over seeds and tasks."""
    comparison: Comparison | None = None
    """``None`` for the reference itself, and where nothing can be compared with it."""
    tuned: TunedMethod | None = None
    """The search whose settings the row has; of a row with default settings, where the search chose them."""
    moved: ScoreDifference | None = None
    """Average of a tuned row minus that of the same method with its default settings."""

    @property
    def planned(self) -> int:
        """Number of seeds, including those without scores."""
        return len(self.records) + len(self.missing)

    @property
    def outcome(self) -> str:
        """``3 of 3 seeds``, or fewer with the reasons."""
        return "; ".join([f"{len(self.seeds)} of {self.planned} seeds", *map(str, self.problems)])


@dataclass(frozen=True, kw_only=True)
class Table:
    """Comparable rows: one protocol, one backbone, one tuple of tasks."""

    title: str
    protocol: Protocol
    model: str
    tasks: tuple[str, ...]
    """Full task names, in training order."""
    differs: Mapping[str, Any]
    """Protocol fields, with this table's values, in which the study's tables differ."""
    rows: tuple[Row, ...]
    """By average, highest first; rows without one last."""
    notes: tuple[str, ...]
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Full task name to the metrics whose mean is its score."""
    reference: str | None = None
    """Label of the row that others are compared with."""
    reference_is_best: bool = False
    """Whether the reference was taken because its average is the highest, not by its name."""
    tests: str = ""
    """A sentence on how marks and intervals were computed, or why there are none; empty if nothing can be tested."""
    searches: tuple[TunedMethod, ...] = ()
    """The searches of the study that tuned rows of this table, by variant."""

    @property
    def scored(self) -> list[Row]:
        """Rows with an average that is finite."""
        return [row for row in self.rows if row.average and math.isfinite(row.average.scores.mean)]


@dataclass(frozen=True, kw_only=True)
class ForeignScore:
    """One number of a foreign row."""

    task: str
    """Full name of our task where it is scored on the same data set, otherwise the program's name."""
    metric: str
    score: float
    """In percent."""
    rows: int | None
    """Number of evaluation examples, where the file says it."""


@dataclass(frozen=True, kw_only=True)
class ForeignRow:
    """What another program measured under a protocol of its own: shown apart, never compared, ranked or tested."""

    label: str
    program: str
    """Name and version."""
    model: str
    file: str
    """Name of the file that it was read from."""
    details: str
    """What the file says about how it was measured."""
    scores: tuple[ForeignScore, ...]
    trainable_parameters: int | None = None


Predictions = Callable[[str], "Mapping[str, TaskAnswers] | None"]
"""Cell key to the stored answers by full task name, or ``None`` where there are none."""


def no_predictions(key: str) -> None:
    """Records without stored predictions."""


Steps = Callable[[str], Sequence[Mapping[str, Any]]]
"""Cell key to the lines of its step log, read on access; they have ``step``, ``loss`` and ``tasks``."""


def no_steps(key: str) -> Sequence[Mapping[str, Any]]:
    """Records without step logs."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Study:
    """The tables of a run folder and the numbers of its cells."""

    title: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    counts: Mapping[str, int]
    """Cells by ``ok``, ``failed``, ``skipped`` and ``missing``."""
    steps: Steps = field(default=no_steps, compare=False, repr=False)
    shows_calibration: bool = False
    """Whether reports that must be short have the table of calibration too."""
    foreign: tuple[ForeignRow, ...] = ()
    """Results of other programs, which reports show apart from the tables."""


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation of at least one number; NaN where a number is NaN."""
    numbers = tuple(values)
    mean = sum(numbers) / len(numbers)
    if len(numbers) < 2:
        return Spread(values=numbers, mean=mean, sd=None)
    return Spread(values=numbers, mean=mean, sd=math.sqrt(sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)))
