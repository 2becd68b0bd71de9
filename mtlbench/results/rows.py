"""From cells and records to the rows of a table: numbers over seeds, marks, costs and problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtlbench.api.cell import Cell, canonical
from mtlbench.api.record import Costs, Record, TaskScore
from mtlbench.api.study import Entry, Problem, Row, RowCosts, Spread, spread
from mtlbench.api.tuning import TunedMethod
from mtlbench.text import one_line

if TYPE_CHECKING:
    from mtlbench.statistics.draws import AnswersOfRecords


def rows_of_variant(
    cells: Sequence[Cell],
    *,
    tasks: tuple[str, ...],
    records: Mapping[int, Record],
    tuned: TunedMethod | None = None,
) -> list[Row]:
    """A row for each source of the plugins, or where cells do not say it, for each combination of their versions;
    ``records`` are by the identity of their cell: making a key takes long enough to do it once.

    A cell of an earlier version joins the cells that say their source where only one source has its versions.
    """
    sources = {(canonical(dict(cell.plugins)), canonical(dict(cell.sources))) for cell in cells if cell.sources}

    def code(cell: Cell) -> str:
        versions = canonical(dict(cell.plugins))
        same = [source for other, source in sources if other == versions]
        return canonical(dict(cell.sources)) if cell.sources else same[0] if len(same) == 1 else versions

    by_code = grouped(cells, code)
    label = _code_label([group[0] for group in by_code])
    return [_row(group, code=label(group[0]), tasks=tasks, records=records, tuned=tuned) for group in by_code]


def _code_label(firsts: Sequence[Cell]) -> Callable[[Cell], str]:
    """What tells the code of each of these cells from that of the others: versions, and sources where they differ."""
    differing = _differing([cell.plugins for cell in firsts])
    plugins = _differing([cell.sources for cell in firsts])
    by_version = len({tuple(c.plugins.get(name) for name in differing) for c in firsts}) == len(firsts)

    def label(cell: Cell) -> str:
        versions = [f"{name} {cell.plugins.get(name, 'not used')}" for name in differing]
        known = [f"source {cell.sources[name][:8]}" for name in plugins if name in cell.sources]
        return ", ".join([*versions, *([] if by_version else dict.fromkeys(known or ["source unknown"]))])

    return label if len(firsts) > 1 else lambda cell: ""


def _differing(values: Sequence[Mapping[str, str]]) -> list[str]:
    names = sorted({name for value in values for name in value})
    return [name for name in names if len({value.get(name) for value in values}) > 1]


def _row(
    cells: Sequence[Cell],
    *,
    code: str,
    tasks: tuple[str, ...],
    records: Mapping[int, Record],
    tuned: TunedMethod | None,
) -> Row:
    cells = sorted(cells, key=lambda cell: cell.seed)
    first = cells[0]
    own = tuple(records[id(cell)] for cell in cells if id(cell) in records)
    done = [record for record in own if record.status == "ok"]
    missing = tuple(cell for cell in cells if id(cell) not in records)
    variant = one_line(first.variant)
    name = f"{one_line(tuned.variant)} (tuned)" if tuned else variant
    whole = [record for record in done if set(tasks) <= set(record.scores)]
    averages = [sum(r.scores[t].score for t in tasks) / len(tasks) for r in whole]
    return Row(
        label=f"{name} ({code})" if code else name,
        variant=variant,
        plugins=first.plugins,
        records=own,
        missing=missing,
        seeds=tuple(record.cell.seed for record in done),
        entries={
            t: _entry([r.scores[t] for r in done if t in r.scores]) for t in tasks if any(t in r.scores for r in done)
        },
        average=Entry(scores=spread(averages), best=False, at_majority=False) if averages else None,
        costs=_costs([record.costs for record in done if record.costs], at_once=_at_once(done)),
        problems=_problems(own, missing=missing),
        average_seeds=tuple(record.cell.seed for record in whole),
        tuned=tuned,
    )


def _entry(scores: Sequence[TaskScore]) -> Entry:
    return Entry(scores=spread(s.score for s in scores), best=False, at_majority=at_majority(scores))


def at_majority(scores: Sequence[TaskScore]) -> bool:
    """Whether accuracy is at most the majority class's, or a correlation at most 0, that of a constant answer."""
    for metric in scores[0].metrics:
        name, majority = metric.partition(",")[0], scores[0].majority
        if majority is None or name not in ("acc", "mcc"):
            continue
        floor = majority / 100 if name == "acc" else 0.0
        return spread(s.metrics[metric] for s in scores if metric in s.metrics).mean <= floor + 1e-9
    return False


def _at_once(records: Sequence[Record]) -> Spread | None:
    """The most that was trained at once, where that is not what is left. Earlier versions noted what was attached."""
    known = [r.notes.get("parameters_at_once", r.notes.get("parameters_attached")) for r in records if r.costs]
    numbers = [number for number in known if isinstance(number, int)]
    if not numbers or numbers == [r.costs.trainable_parameters for r in records if r.costs]:
        return None
    return spread(numbers)


def _costs(costs: Sequence[Costs], *, at_once: Spread | None) -> RowCosts | None:
    if not costs:
        return None
    adapters = [c.adapter_bytes for c in costs if c.adapter_bytes]
    peaks = [c.peak_memory for c in costs if c.peak_memory is not None]
    trainable = spread(c.trainable_parameters for c in costs)
    backbone = max(c.backbone_parameters for c in costs)
    return RowCosts(
        trainable_parameters=trainable,
        trainable_percent=100 * trainable.mean / backbone if backbone else 0.0,
        inference_parameters=spread(c.inference_parameters for c in costs),
        adapter_bytes=spread(adapters) if adapters else None,
        peak_memory=spread(peaks) if peaks else None,
        peak_memory_kind=" and ".join(sorted({c.peak_memory_kind for c in costs if c.peak_memory_kind})),
        tokens_per_second=spread(c.tokens_per_second for c in costs),
        train_seconds=spread(c.train_seconds for c in costs),
        total_seconds=spread(c.total_seconds for c in costs),
        trained_at_once=at_once,
    )


def _problems(records: Sequence[Record], *, missing: Sequence[Cell]) -> tuple[Problem, ...]:
    reasons: dict[tuple[Any, str, str, str], list[int]] = {}
    for record in records:
        if record.status == "ok":
            continue
        why = record.failure
        reason = (
            (why.kind, one_line(why.message), one_line(why.next_step)) if why else ("", "no reason was recorded", "")
        )
        reasons.setdefault((record.status, *reason), []).append(record.cell.seed)
    if missing:
        again = "Run the same command again: it runs only what is missing."
        reasons[("missing", "", "no record yet", again)] = [cell.seed for cell in missing]
    return tuple(
        Problem(status=status, seeds=tuple(seeds), kind=kind, message=message, next_step=next_step)
        for (status, kind, message, next_step), seeds in reasons.items()
    )


def with_best(rows: Sequence[Row], *, tasks: Sequence[str]) -> list[Row]:
    """The rows with their best entries marked, by task and on average."""
    tops = {task: _top(row.entries.get(task) for row in rows) for task in tasks}
    top = _top(row.average for row in rows)
    return [
        replace(
            row,
            entries={t: replace(e, best=_is_best(e, tops[t])) for t, e in row.entries.items()},
            average=row.average and replace(row.average, best=_is_best(row.average, top)),
        )
        for row in rows
    ]


def _is_best(entry: Entry, top: float | None) -> bool:
    return entry.scores.mean == top and entry.scores.n > 1


def _top(entries: Iterable[Entry | None]) -> float | None:
    """The highest mean, if it and another one are over two seeds or more."""
    known = [entry.scores for entry in entries if entry]
    real = [scores for scores in known if not math.isnan(scores.mean)]
    top = max(real, key=lambda scores: (scores.mean, scores.n), default=None)
    comparable = sum(scores.n > 1 for scores in known) > 1
    return top.mean if top is not None and top.n > 1 and comparable else None


def by_average(row: Row) -> tuple[bool, bool, float, str]:
    """Sort key: best average first, then rows whose average is NaN or missing."""
    mean = row.average.scores.mean if row.average else 0.0
    return row.average is None, math.isnan(mean), 0.0 if math.isnan(mean) else -mean, row.label


def grouped(cells: Iterable[Cell], by: Callable[[Cell], str]) -> list[list[Cell]]:
    """Cells in groups, sorted by group name, so that a study does not depend on the order of records."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(by(cell), []).append(cell)
    return [groups[name] for name in sorted(groups)]


def with_calibration(
    rows: Sequence[Row], answers: AnswersOfRecords, *, metrics: Mapping[str, Sequence[str]]
) -> tuple[Row, ...]:
    """The rows with the calibration of their records, for the tasks of ``metrics``: full name to metrics of the score.

    Tasks whose score divides log-likelihoods by the choices' lengths have none: predictions do not hold the lengths.
    """
    tasks = [task for task, names in metrics.items() if not _by_length(names)]

    def calibrated(row: Row) -> Row:
        by_seed = {
            record.cell.seed: {
                task: found for task in tasks if task in stored and (found := stored[task].calibration) is not None
            }
            for record in row.records
            if (stored := answers.get(id(record)))
        }
        return replace(row, calibration={seed: found for seed, found in by_seed.items() if found})

    return tuple(map(calibrated, rows))


def _by_length(metrics: Sequence[str]) -> bool:
    names = {metric.partition(",")[0] for metric in metrics}
    return "acc_norm" in names and "acc" not in names
