"""``scores.csv``, ``metrics.csv``, ``costs.csv`` and ``differences.csv``, one line for each observation, and
``summary.csv``, one line for each row of a table. Where there are any, ``balance.csv``, per row and pair of tasks,
``forgetting.csv``, per row and probe task,
``sweeps.csv``, per row and value of a swept field, and ``foreign.csv``. docs/schemas.md describes their columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mtlbench import Report, hookimpl
from mtlbench.api.study import Entry, Row, RowCosts, Study, Table
from mtlbench.results.analyses.interference import balances
from mtlbench.results.analyses.probing import forgetting, probed, refusal, untrained
from mtlbench.results.analyses.sweeps import sweeps_in
from mtlbench.results.data.tidy import MAKERS, OF_A_STUDY, TidyRow, Value
from mtlbench.results.tuned import tuning_text

_SUMMARY = ("table", "title", "label", "seeds", "outcome")
_MOVED = ("tuning", "moved_by_tuning", "moved_low", "moved_high", "held_out_score", "searched")
_COSTS = (
    "trainable_parameters", "trainable_percent", "inference_parameters", "adapter_bytes", "peak_memory",
    "peak_memory_kind", "tokens_per_second", "train_seconds", "total_seconds", "trained_at_once",
)  # fmt: skip
_OVER_TASKS = (
    "mean_rank", "iqm", "iqm_low", "iqm_high", "reference", "gain_percent", "worse_tasks", "worst_task",
    "better_percent", "rank_p",
)  # fmt: skip
_FORGETTING = (
    "table", "title", "label", "task", "seeds", "before", "after", "forgetting", "sd", "low", "high", "reason",
)  # fmt: skip
_BALANCE = ("table", "title", "label", "task", "other", "seeds", "weight", "cosine")
_SWEEPS = ("sweep", "field", "value", "position", "table", "label", "seeds", "average", "sd", "low", "high")
PARTS = ("", "_sd", "_low", "_high", "_mark")
"""Of the columns of a task in the summary: mean, standard deviation over seeds, ends of the 95 % interval, mark."""


class Csv(Report):
    """Numbers at full precision, for spreadsheets and scripts."""

    name = "csv"

    def render(self, study: Study) -> Mapping[str, str]:
        tasks = dict.fromkeys(task for table in study.tables for task in table.tasks)
        columns = [f"{task}{part}" for task in (*tasks, "average") for part in PARTS]
        tidy = {
            f"{name}.csv": _text([column.name for column in OF_A_STUDY[name]], rows(study))
            for name, rows in MAKERS.items()
            if name != "foreign" or study.foreign
        }
        return {
            **tidy,
            "summary.csv": _text((*_SUMMARY, *columns, *_OVER_TASKS, *_MOVED, *_COSTS), _wide(study.tables)),
            **({"sweeps.csv": _text(_SWEEPS, _sweeps(study.tables))} if sweeps_in(study.tables) else {}),
            **({"balance.csv": _text(_BALANCE, _balance(study.tables))} if any(map(balances, study.tables)) else {}),
            **({"forgetting.csv": _text(_FORGETTING, _forgetting(study.tables))} if _any_probed(study) else {}),
        }


@hookimpl
def mtlbench_reports() -> Iterable[Report]:
    return [Csv()]


def _wide(tables: Sequence[Table]) -> Iterator[TidyRow]:
    for number, table in enumerate(tables, start=1):
        for row in table.rows:
            line: TidyRow = {"table": number, "title": table.title, "label": row.label}
            line |= {"seeds": len(row.seeds), "outcome": row.outcome}
            for name, entry in (*row.entries.items(), ("average", row.average)):
                line |= _entry(name, entry) if entry else {}
            line |= _tuning(row, table)
            yield line | _over_tasks(row, table.reference) | (_costs(row.costs) if row.costs else {})


def _tuning(row: Row, table: Table) -> TidyRow:
    values: TidyRow = {"tuning": tuning_text(row, table)} if table.searches else {}
    if row.tuned and row.tuned.winner:
        values |= {"held_out_score": row.tuned.winner.mean, "searched": ", ".join(sorted(row.tuned.fields))}
    if row.moved:
        values["moved_by_tuning"] = row.moved.points
        if row.moved.interval:
            values |= {"moved_low": row.moved.interval.low, "moved_high": row.moved.interval.high}
    return values


def _entry(name: str, entry: Entry) -> TidyRow:
    mark = "best" if entry.best else {True: "not significantly worse", False: "worse", None: None}[entry.tied]
    values: TidyRow = {name: entry.scores.mean, f"{name}_sd": entry.scores.sd, f"{name}_mark": mark}
    return values | ({f"{name}_low": entry.interval.low, f"{name}_high": entry.interval.high} if entry.interval else {})


def _over_tasks(row: Row, reference: str | None) -> TidyRow:
    values: TidyRow = {"mean_rank": row.rank}
    if row.iqm:
        values |= {"iqm": row.iqm.mean, "iqm_low": row.iqm.low, "iqm_high": row.iqm.high}
    if row.comparison:
        values |= {
            "reference": reference,
            "gain_percent": row.comparison.gain,
            "worse_tasks": len(row.comparison.worse),
        }
        values |= {"worst_task": row.comparison.worst, "better_percent": row.comparison.improvement}
        values |= {"rank_p": row.comparison.rank_p}
    return values


def _sweeps(tables: Sequence[Table]) -> Iterator[TidyRow]:
    numbers = {id(table): number for number, table in enumerate(tables, start=1)}
    for sweep in sweeps_in(tables):
        for row in sweep.rows:
            for point in sweep.points:
                line: TidyRow = {"sweep": sweep.title, "field": sweep.field, "value": point.value}
                line |= {"position": point.position, "table": numbers[id(point.table)], "label": row.label}
                if (entry := point.entry(row.label)) is not None:
                    line |= {"seeds": entry.scores.n, "average": entry.scores.mean, "sd": entry.scores.sd}
                    line |= {"low": entry.interval.low, "high": entry.interval.high} if entry.interval else {}
                yield line


def _any_probed(study: Study) -> bool:
    return any(probed(table) for table in study.tables)


def _forgetting(tables: Sequence[Table]) -> Iterator[TidyRow]:
    for number, table in enumerate(tables, start=1):
        tasks = table.protocol.probe_tasks
        for row in probed(table):
            where: TidyRow = {"table": number, "title": table.title, "label": row.label, "reason": refusal(row) or None}
            for name, over in (*((task, (task,)) for task in tasks), ("mean", tasks)):
                line: TidyRow = {"task": name, "before": untrained(row, over)}
                if (one := forgetting(row, over)) is not None:
                    line |= {"seeds": len(one.seeds), "before": one.before, "after": one.after}
                    line |= {"forgetting": one.points.mean, "sd": one.points.sd}
                    line |= {"low": one.interval.low, "high": one.interval.high} if one.interval else {}
                yield where | line


def _balance(tables: Sequence[Table]) -> Iterator[TidyRow]:
    for number, table in enumerate(tables, start=1):
        for label, balance in balances(table).items():
            where: TidyRow = {"table": number, "title": table.title, "label": label, "seeds": len(balance.seeds)}
            for at, task in enumerate(balance.tasks):
                yield where | {"task": task, "weight": balance.weights[at]}
                for other, cosine in zip(balance.tasks, balance.cosines[at] if balance.cosines else (), strict=False):
                    yield where | {"task": task, "other": other, "cosine": cosine}


def _costs(costs: RowCosts) -> TidyRow:
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


def _text(columns: Sequence[str], lines: Iterable[TidyRow]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_guarded(column) for column in columns])
    writer.writerows([[_guarded(line.get(column)) for column in columns] for line in lines])
    return out.getvalue()


def _guarded(cell: Value) -> Value:
    """Text that a spreadsheet would evaluate as a formula gets an apostrophe in front."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
