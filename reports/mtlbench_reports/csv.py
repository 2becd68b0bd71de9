"""``scores.csv``, one line per measured number, ``summary.csv``, per row of a table, and ``differences.csv``, per row
and task compared with the reference. Where there are any, ``forgetting.csv``, per row and probe task, and
``sweeps.csv``, per row and value of a swept field."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mtlbench import Report, hookimpl
from mtlbench.api.study import Entry, Row, RowCosts, Study, Table
from mtlbench.results.analyses.probing import forgetting, probed, refusal, untrained
from mtlbench.results.analyses.sweeps import sweeps_in
from mtlbench.results.tuned import tuning_text

Value = str | int | float | None
CsvRow = dict[str, Value]

_SCORES = (
    "table", "title", "model", "data", "protocol", "variant", "plugins", "seed", "status", "task", "score", "metric",
    "value", "rows", "majority", "flags", "reason", "key",
)  # fmt: skip
_SUMMARY = ("table", "title", "method", "seeds", "outcome")
_MOVED = ("tuning", "moved by tuning", "moved low", "moved high", "held-out score", "searched")
_COSTS = (
    "trainable_parameters", "trainable_percent", "inference_parameters", "adapter_bytes", "peak_memory",
    "peak_memory_kind", "tokens_per_second", "train_seconds", "total_seconds", "trained_at_once",
)  # fmt: skip
_OVER_TASKS = (
    "mean rank", "iqm", "iqm low", "iqm high", "reference", "gain percent", "worse tasks", "worst task",
    "better percent", "rank p",
)  # fmt: skip
_FORGETTING = (
    "table", "title", "method", "task", "seeds", "before", "after", "forgetting", "sd", "low", "high", "reason",
)  # fmt: skip
_SWEEPS = ("sweep", "field", "value", "position", "table", "method", "seeds", "average", "sd", "low", "high")
_DIFFERENCES = ("table", "title", "method", "reference", "task", "seeds", "points", "low", "high", "corrected p")


class Csv(Report):
    """Numbers at full precision, for spreadsheets and scripts."""

    name = "csv"

    def render(self, study: Study) -> Mapping[str, str]:
        tasks = dict.fromkeys(task for table in study.tables for task in table.tasks)
        columns = [f"{task}{what}" for task in (*tasks, "average") for what in ("", " sd", " low", " high", " mark")]
        return {
            "scores.csv": _text(_SCORES, _long(study.tables)),
            "summary.csv": _text((*_SUMMARY, *columns, *_OVER_TASKS, *_MOVED, *_COSTS), _wide(study.tables)),
            "differences.csv": _text(_DIFFERENCES, _differences(study.tables)),
            **({"sweeps.csv": _text(_SWEEPS, _sweeps(study.tables))} if sweeps_in(study.tables) else {}),
            **({"forgetting.csv": _text(_FORGETTING, _forgetting(study.tables))} if _any_probed(study) else {}),
        }


@hookimpl
def mtlbench_reports() -> Iterable[Report]:
    return [Csv()]


def _long(tables: Sequence[Table]) -> Iterator[CsvRow]:
    for number, table in enumerate(tables, start=1):
        where: CsvRow = {"table": number, "title": table.title, "model": table.model}
        where |= {"data": table.protocol.data, "protocol": table.protocol.hash()}
        for row in table.rows:
            plugins = " ".join(f"{name}={version}" for name, version in sorted(row.plugins.items()))
            yield from (where | {"variant": row.variant, "plugins": plugins} | line for line in _lines(row))


def _lines(row: Row) -> Iterator[CsvRow]:
    reasons = {seed: str(problem) for problem in row.problems for seed in problem.seeds}
    for record in row.records:
        seed = record.cell.seed
        cell: CsvRow = {"seed": seed, "status": record.status, "reason": reasons.get(seed), "key": record.key}
        if not record.scores:
            yield cell
        flags = [flag for flag in row.flags if flag.seed == seed]
        for task, score in record.scores.items():
            scored: CsvRow = {"task": task, "score": score.score, "rows": score.rows, "majority": score.majority}
            flagged = [f"{flag.kind} {flag.detail}".rstrip() for flag in flags if flag.task in (None, task)]
            scored["flags"] = "; ".join(flagged) or None
            for metric, value in score.metrics.items() or [(None, None)]:
                yield cell | scored | {"metric": metric, "value": value}
            calibration = row.calibration.get(seed, {}).get(task)
            for name, number in (("ece", calibration.ece), ("brier", calibration.brier)) if calibration else ():
                if number is not None:
                    yield cell | scored | {"metric": name, "value": number}
    for missing in row.missing:
        yield {"seed": missing.seed, "status": "missing", "reason": reasons.get(missing.seed), "key": missing.key}


def _wide(tables: Sequence[Table]) -> Iterator[CsvRow]:
    for number, table in enumerate(tables, start=1):
        for row in table.rows:
            line: CsvRow = {"table": number, "title": table.title, "method": row.label}
            line |= {"seeds": len(row.seeds), "outcome": row.outcome}
            for name, entry in (*row.entries.items(), ("average", row.average)):
                line |= _entry(name, entry) if entry else {}
            line |= _tuning(row, table)
            yield line | _over_tasks(row, table.reference) | (_costs(row.costs) if row.costs else {})


def _tuning(row: Row, table: Table) -> CsvRow:
    values: CsvRow = {"tuning": tuning_text(row, table)} if table.searches else {}
    if row.tuned and row.tuned.winner:
        values |= {"held-out score": row.tuned.winner.mean, "searched": ", ".join(sorted(row.tuned.fields))}
    if row.moved:
        values["moved by tuning"] = row.moved.points
        if row.moved.interval:
            values |= {"moved low": row.moved.interval.low, "moved high": row.moved.interval.high}
    return values


def _entry(name: str, entry: Entry) -> CsvRow:
    mark = "best" if entry.best else {True: "not significantly worse", False: "worse", None: None}[entry.tied]
    values: CsvRow = {name: entry.scores.mean, f"{name} sd": entry.scores.sd, f"{name} mark": mark}
    return values | ({f"{name} low": entry.interval.low, f"{name} high": entry.interval.high} if entry.interval else {})


def _over_tasks(row: Row, reference: str | None) -> CsvRow:
    values: CsvRow = {"mean rank": row.rank}
    if row.iqm:
        values |= {"iqm": row.iqm.mean, "iqm low": row.iqm.low, "iqm high": row.iqm.high}
    if row.comparison:
        values |= {
            "reference": reference,
            "gain percent": row.comparison.gain,
            "worse tasks": len(row.comparison.worse),
        }
        values |= {"worst task": row.comparison.worst, "better percent": row.comparison.improvement}
        values |= {"rank p": row.comparison.rank_p}
    return values


def _differences(tables: Sequence[Table]) -> Iterator[CsvRow]:
    for number, table in enumerate(tables, start=1):
        for row in table.rows:
            if row.comparison is None:
                continue
            where: CsvRow = {"table": number, "title": table.title, "method": row.label, "reference": table.reference}
            where["seeds"] = len(row.comparison.seeds)
            for task, one in (*row.comparison.differences.items(), ("average", row.comparison.average)):
                if one is not None:
                    low, high = (one.interval.low, one.interval.high) if one.interval else (None, None)
                    yield where | {"task": task, "points": one.points, "low": low, "high": high, "corrected p": one.p}


def _sweeps(tables: Sequence[Table]) -> Iterator[CsvRow]:
    numbers = {id(table): number for number, table in enumerate(tables, start=1)}
    for sweep in sweeps_in(tables):
        for row in sweep.rows:
            for point in sweep.points:
                line: CsvRow = {"sweep": sweep.title, "field": sweep.field, "value": point.value}
                line |= {"position": point.position, "table": numbers[id(point.table)], "method": row.label}
                if (entry := point.entry(row.label)) is not None:
                    line |= {"seeds": entry.scores.n, "average": entry.scores.mean, "sd": entry.scores.sd}
                    line |= {"low": entry.interval.low, "high": entry.interval.high} if entry.interval else {}
                yield line


def _any_probed(study: Study) -> bool:
    return any(probed(table) for table in study.tables)


def _forgetting(tables: Sequence[Table]) -> Iterator[CsvRow]:
    for number, table in enumerate(tables, start=1):
        tasks = table.protocol.probe_tasks
        for row in probed(table):
            where: CsvRow = {"table": number, "title": table.title, "method": row.label, "reason": refusal(row) or None}
            for name, over in (*((task, (task,)) for task in tasks), ("mean", tasks)):
                line: CsvRow = {"task": name, "before": untrained(row, over)}
                if (one := forgetting(row, over)) is not None:
                    line |= {"seeds": len(one.seeds), "before": one.before, "after": one.after}
                    line |= {"forgetting": one.points.mean, "sd": one.points.sd}
                    line |= {"low": one.interval.low, "high": one.interval.high} if one.interval else {}
                yield where | line


def _costs(costs: RowCosts) -> CsvRow:
    return {
        "trainable_parameters": costs.trainable_parameters.mean,
        "trained_at_once": (costs.trained_at_once or costs.trainable_parameters).mean,
        "trainable_percent": costs.trainable_percent,
        "inference_parameters": costs.inference_parameters.mean,
        "adapter_bytes": costs.adapter_bytes.mean if costs.adapter_bytes else None,
        "peak_memory": max(costs.peak_memory.values) if costs.peak_memory else None,
        "peak_memory_kind": costs.peak_memory_kind,
        "tokens_per_second": costs.tokens_per_second.mean,
        "train_seconds": costs.train_seconds.mean,
        "total_seconds": costs.total_seconds.mean,
    }


def _text(columns: Sequence[str], lines: Iterable[CsvRow]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_guarded(column) for column in columns])
    writer.writerows([[_guarded(line.get(column)) for column in columns] for line in lines])
    return out.getvalue()


def _guarded(cell: Value) -> Value:
    """Text that a spreadsheet would evaluate as a formula gets an apostrophe in front."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
