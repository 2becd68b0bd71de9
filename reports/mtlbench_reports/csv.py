"""``scores.csv``, one line per measured number, and ``summary.csv``, one line per row of a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mtlbench import Report, hookimpl
from mtlbench.tables import Row, RowCosts, Study, Table

Value = str | int | float | None
Line = dict[str, Value]

_SCORES = (
    "table", "title", "model", "data", "protocol", "variant", "plugins", "seed", "status", "task", "score", "metric",
    "value", "rows", "majority", "reason", "key",
)  # fmt: skip
_SUMMARY = ("table", "title", "method", "seeds", "outcome")
_COSTS = (
    "trainable_parameters", "trainable_percent", "inference_parameters", "peak_memory", "peak_memory_kind",
    "tokens_per_second", "train_seconds", "total_seconds",
)  # fmt: skip


class Csv(Report):
    """Numbers at full precision, for spreadsheets and scripts."""

    name = "csv"

    def render(self, study: Study) -> Mapping[str, str]:
        tasks = dict.fromkeys(task for table in study.tables for task in table.tasks)
        columns = [name for column in (*tasks, "average") for name in (column, f"{column} sd")]
        return {
            "scores.csv": _text(_SCORES, _long(study.tables)),
            "summary.csv": _text((*_SUMMARY, *columns, *_COSTS), _wide(study.tables)),
        }


@hookimpl
def mtlbench_reports() -> Iterable[Report]:
    return [Csv()]


def _long(tables: Sequence[Table]) -> Iterator[Line]:
    for number, table in enumerate(tables, start=1):
        where: Line = {"table": number, "title": table.title, "model": table.model}
        where |= {"data": table.protocol.data, "protocol": table.protocol.hash()}
        for row in table.rows:
            plugins = " ".join(f"{name}={version}" for name, version in sorted(row.plugins.items()))
            yield from (where | {"variant": row.variant, "plugins": plugins} | line for line in _lines(row))


def _lines(row: Row) -> Iterator[Line]:
    reasons = {seed: str(problem) for problem in row.problems for seed in problem.seeds}
    for record in row.records:
        seed = record.cell.seed
        cell: Line = {"seed": seed, "status": record.status, "reason": reasons.get(seed), "key": record.key}
        if not record.scores:
            yield cell
        for task, score in record.scores.items():
            told: Line = {"task": task, "score": score.score, "rows": score.rows, "majority": score.majority}
            for metric, value in score.metrics.items() or [(None, None)]:
                yield cell | told | {"metric": metric, "value": value}
    for missing in row.missing:
        yield {"seed": missing.seed, "status": "missing", "reason": reasons.get(missing.seed), "key": missing.key}


def _wide(tables: Sequence[Table]) -> Iterator[Line]:
    for number, table in enumerate(tables, start=1):
        for row in table.rows:
            line: Line = {"table": number, "title": table.title, "method": row.label}
            line |= {"seeds": len(row.seeds), "outcome": row.outcome}
            for name, entry in (*row.entries.items(), ("average", row.average)):
                line |= {name: entry.scores.mean, f"{name} sd": entry.scores.sd} if entry else {}
            yield line | (_costs(row.costs) if row.costs else {})


def _costs(costs: RowCosts) -> Line:
    return {
        "trainable_parameters": costs.trainable_parameters.mean,
        "trainable_percent": costs.trainable_percent,
        "inference_parameters": costs.inference_parameters.mean,
        "peak_memory": max(costs.peak_memory.values) if costs.peak_memory else None,
        "peak_memory_kind": costs.peak_memory_kind,
        "tokens_per_second": costs.tokens_per_second.mean,
        "train_seconds": costs.train_seconds.mean,
        "total_seconds": costs.total_seconds.mean,
    }


def _text(columns: Sequence[str], lines: Iterable[Line]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_guarded(column) for column in columns])
    writer.writerows([[_guarded(line.get(column)) for column in columns] for line in lines])
    return out.getvalue()


def _guarded(cell: Value) -> Value:
    """Text that a spreadsheet would run as a formula starts with an apostrophe instead."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
