"""A study as rows of plain values, one for each observation: what the csv files, ``--json`` and the frames hold.

All scores, metrics and differences are in percent, times in seconds, memory in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from mtlbench.api.record import Costs, Record
from mtlbench.api.study import Row, Study, Table

Value = str | int | float | None
TidyRow = dict[str, Value]
Kind = Literal["text", "integer", "number"]


@dataclass(frozen=True)
class Column:
    """One column of tidy rows."""

    name: str
    kind: Kind
    meaning: str
    empty: str = ""
    """When a row has no value there; empty if it always has one."""


_TABLE = Column("table", "integer", "number of the table in the study, from 1")
_TITLE = Column("title", "text", "title of the table")
_LABEL = Column("label", "text", "the row as tables name it: the variant, with versions or `(tuned)` where needed")
_VARIANT = Column("variant", "text", "the method with the settings given to it: `lora[rank=16]`")
_SEED = Column("seed", "integer", "seed of the cell")
_KEY = Column("key", "text", "key of the cell: the name of its files in the run folder")
_TASK = Column("task", "text", "full name of the task: `glue/rte`", empty="the cell has no scores")

SCORES = (
    _TABLE,
    _TITLE,
    Column("model", "text", "backbone"),
    Column("data", "text", "where the data came from, with a digest"),
    Column("protocol", "text", "hash of the protocol, the same in every row of a table"),
    _LABEL,
    _VARIANT,
    Column("plugins", "text", "packages of the method and the suites with their versions"),
    _SEED,
    Column("status", "text", "`ok`, `failed`, `skipped` or `missing`"),
    _TASK,
    Column("score", "number", "mean of the task's metrics, in percent", empty="the cell has no scores"),
    Column("rows", "integer", "evaluation examples", empty="the cell has no scores"),
    Column(
        "majority", "number", "accuracy of the most frequent label, in percent", empty="the task has no gold labels"
    ),
    Column("flags", "text", "signs that the run is degenerate", empty="there are none"),
    Column("reason", "text", "why the cell has no scores", empty="it has scores"),
    _KEY,
)
"""One row for each cell and task; one for a cell without scores."""

METRICS = (
    _TABLE,
    _LABEL,
    _VARIANT,
    _SEED,
    Column("task", "text", "full name of the task: `glue/rte`"),
    Column("metric", "text", "metric of lm-eval, or `ece` and `brier` of the choices"),
    Column("value", "number", "its value in percent: 100 times what lm-eval prints, or 100 times the calibration"),
    _KEY,
)
"""One row for each cell, task and metric."""

COSTS = (
    _TABLE,
    _LABEL,
    _VARIANT,
    _SEED,
    Column("trainable_parameters", "integer", "parameters that were trained"),
    Column("trainable_percent", "number", "the same in percent of the backbone's parameters"),
    Column("backbone_parameters", "integer", "parameters of the backbone"),
    Column("inference_parameters", "integer", "parameters and buffers that the method adds at inference"),
    Column("adapter_bytes", "integer", "size of the saved adapter", empty="nothing was saved"),
    Column("peak_memory", "integer", "highest use of memory, in bytes", empty="it was not measured"),
    Column("peak_memory_kind", "text", "`device` or `process`", empty="it was not measured"),
    Column("tokens_per_second", "number", "real training tokens in a second of training"),
    Column("train_seconds", "number", "time of training"),
    Column("eval_seconds", "number", "time of evaluation"),
    Column("total_seconds", "number", "time of the cell"),
    Column("steps", "integer", "optimizer steps"),
    Column("train_rows", "integer", "examples trained on, with repetitions"),
    Column("train_tokens", "integer", "tokens trained on, without padding"),
    Column("device", "text", "device of the cell", empty="the record does not say"),
    Column("threads", "integer", "CPU threads of the cell", empty="the record does not say"),
    _KEY,
)
"""One row for each finished cell."""

DIFFERENCES = (
    _TABLE,
    _TITLE,
    _LABEL,
    Column("reference", "text", "label of the row it is compared with"),
    Column("task", "text", "full name of the task, or `average`"),
    Column("seeds", "integer", "seeds that both rows have"),
    Column("points", "number", "mean of the row minus the reference, in points of percent"),
    Column("low", "number", "lower end of the 95 % interval", empty="nothing can be tested"),
    Column("high", "number", "upper end of the 95 % interval", empty="nothing can be tested"),
    Column("corrected_p", "number", "p-value, corrected over the rows of the column", empty="nothing can be tested"),
)
"""One row for each row of a table and task."""


FOREIGN = (
    Column("label", "text", "adapter, experiment or model, as its file names it"),
    Column("program", "text", "program that measured it, with its version"),
    Column("model", "text", "backbone"),
    Column("task", "text", "full name of our task where the data set is the same, otherwise the program's name"),
    Column("metric", "text", "metric, as the program names it"),
    Column("score", "number", "its value in percent"),
    Column("rows", "integer", "evaluation examples", empty="the file does not say"),
    Column("trainable_parameters", "integer", "parameters that were trained", empty="the file does not say"),
    Column("details", "text", "what the file says about how it was measured"),
    Column("file", "text", "name of the file"),
)
"""One row for each number that another program measured."""


def scores(study: Study) -> Iterator[TidyRow]:
    """Rows with the columns :data:`SCORES`."""
    for number, table, row in _rows(study):
        where: TidyRow = {"table": number, "title": table.title, "model": table.model}
        where |= {"data": table.protocol.data, "protocol": table.protocol.hash(), "label": row.label}
        where |= {"variant": row.variant, "plugins": _plugins(row)}
        reasons = {seed: str(problem) for problem in row.problems for seed in problem.seeds}
        for record in row.records:
            cell = where | {"seed": record.cell.seed, "status": record.status, "key": record.key}
            if not record.scores:
                yield cell | {"reason": reasons.get(record.cell.seed)}
            for task, score in record.scores.items():
                values: TidyRow = {"task": task, "score": score.score, "rows": score.rows, "majority": score.majority}
                yield cell | values | {"flags": _flags(row, seed=record.cell.seed, task=task)}
        for missing in row.missing:
            cell = where | {"seed": missing.seed, "status": "missing", "key": missing.key}
            yield cell | {"reason": reasons.get(missing.seed)}


def metrics(study: Study) -> Iterator[TidyRow]:
    """Rows with the columns :data:`METRICS`."""
    calibrated = {(row.label, number): row.calibration for number, _, row in _rows(study)}
    for where, record in _records(study):
        calibration = calibrated[str(where["label"]), int(where["table"] or 0)].get(record.cell.seed, {})
        for task, score in record.scores.items():
            one = calibration.get(task)
            found = {**score.metrics, **({"ece": one.ece, "brier": one.brier} if one else {})}
            for metric, value in found.items():
                if value is not None:
                    yield where | {"task": task, "metric": metric, "value": 100 * value}


def costs(study: Study) -> Iterator[TidyRow]:
    """Rows with the columns :data:`COSTS`."""
    known = {column.name for column in COSTS} & {field.name for field in fields(Costs)}
    for where, record in _records(study):
        if record.costs is None:
            continue
        values: TidyRow = {name: getattr(record.costs, name) or None for name in ("adapter_bytes", "peak_memory_kind")}
        values = {name: getattr(record.costs, name) for name in known} | values
        backbone = record.costs.backbone_parameters
        values["trainable_percent"] = 100 * record.costs.trainable_parameters / backbone if backbone else 0.0
        device, threads = record.provenance.get("device"), record.provenance.get("threads")
        yield where | values | {"device": device, "threads": threads}


def differences(study: Study) -> Iterator[TidyRow]:
    """Rows with the columns :data:`DIFFERENCES`."""
    for number, table, row in _rows(study):
        if row.comparison is None:
            continue
        where: TidyRow = {"table": number, "title": table.title, "label": row.label, "reference": table.reference}
        where["seeds"] = len(row.comparison.seeds)
        for task, one in (*row.comparison.differences.items(), ("average", row.comparison.average)):
            if one is not None:
                low, high = (one.interval.low, one.interval.high) if one.interval else (None, None)
                yield where | {"task": task, "points": one.points, "low": low, "high": high, "corrected_p": one.p}


def foreign(study: Study) -> Iterator[TidyRow]:
    """Rows with the columns :data:`FOREIGN`."""
    for row in study.foreign:
        whose: TidyRow = {"label": row.label, "program": row.program, "model": row.model, "file": row.file}
        whose |= {"details": row.details, "trainable_parameters": row.trainable_parameters}
        for one in row.scores:
            yield whose | {"task": one.task, "metric": one.metric, "score": one.score, "rows": one.rows}


OF_A_STUDY: Mapping[str, tuple[Column, ...]] = {
    "scores": SCORES,
    "metrics": METRICS,
    "costs": COSTS,
    "differences": DIFFERENCES,
    "foreign": FOREIGN,
}
"""Name of a csv file, of a list in ``report --json`` and of a method of a study to its columns."""
MAKERS = {"scores": scores, "metrics": metrics, "costs": costs, "differences": differences, "foreign": foreign}


def tidy(study: Study, name: str) -> list[TidyRow]:
    """The rows of that name in :data:`OF_A_STUDY`, each with every column."""
    columns = [column.name for column in OF_A_STUDY[name]]
    return [{column: row.get(column) for column in columns} for row in MAKERS[name](study)]


def _rows(study: Study) -> Iterator[tuple[int, Table, Row]]:
    for number, table in enumerate(study.tables, start=1):
        for row in table.rows:
            yield number, table, row


def _records(study: Study) -> Iterator[tuple[TidyRow, Record]]:
    """Finished records, each with the columns that say whose it is."""
    for number, _, row in _rows(study):
        for record in row.records:
            if record.status == "ok":
                seed, key = record.cell.seed, record.key
                yield {"table": number, "label": row.label, "variant": row.variant, "seed": seed, "key": key}, record


def _plugins(row: Row) -> str:
    return " ".join(f"{name}={version}" for name, version in sorted(row.plugins.items()))


def _flags(row: Row, *, seed: int, task: str) -> str | None:
    found: Iterable[str] = (
        f"{flag.kind} {flag.detail}".rstrip() for flag in row.flags if flag.seed == seed and flag.task in (None, task)
    )
    return "; ".join(found) or None
