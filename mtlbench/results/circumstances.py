"""Versions, devices and protocol of a table's records: what differs between them and what is equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mtlbench.api.cell import Protocol
from mtlbench.api.record import Record
from mtlbench.api.row_checks import RowCheck
from mtlbench.api.study import Row, Table
from mtlbench.results.training_flags import last_entropies
from mtlbench.text import memory, one_line, seeds_label


def circumstances(rows: Sequence[Row]) -> Iterable[str]:
    """A sentence for each library version and number of devices that differs between scored records, and one for
    devices that other programs also used."""
    for name in sorted({name for row in rows for record in _done(row) for name in _versions(record)}):
        by_version = _rows_by_value(rows, lambda record, name=name: _versions(record).get(name))  # type: ignore[misc]
        if len(by_version) > 1:
            yield f"Records were made with different versions of {one_line(name)}: {_value_list(by_version)}."
    weighting = _rows_by_value(rows, lambda record: record.notes.get("task_weighting") or None)
    if len(weighting) > 1:
        yield (
            f"Methods were trained on different losses: {_value_list(weighting)}. --task-weighting rows or tasks gives "
            "all of them the same."
        )
    for why in _rows_by_value(rows, lambda record: record.provenance.get("device_why")):
        yield f"Records were made on the processor: {why}"
    devices = _rows_by_value(rows, lambda record: str(record.provenance.get("processes", 1)))
    if len(devices) > 1:
        yield (
            "Cells ran on different numbers of devices, so times and memory are not comparable between them: "
            f"{_value_list(devices)}."
        )
    shared = _rows_by_value(rows, _foreign_memory)
    if shared:
        yield (
            "Other programs used memory of the device when these cells ran, so their times are not comparable: "
            f"{_value_list(shared)}."
        )
    searches = {row.label: [e for record in _done(row) for e in last_entropies(record).values()] for row in rows}
    if decided := "; ".join(f"{label} {_range(entropies)}" for label, entropies in searches.items() if entropies):
        yield (
            "How decided the search of an architecture was, as the entropy of the mixtures at its last cut, 1 for "
            f"uniform ones: {decided}."
        )
    workers = _rows_by_value(rows, lambda record: record.provenance.get("workers_per_device"))
    if workers:
        yield (
            "Several workers shared a device, so times are not comparable. Workers on each device: "
            f"{_value_list(workers)}."
        )

    for name, sentence in _OF_BACKBONES.items():
        for text, who in _rows_by_value(rows, lambda record, name=name: record.notes.get(name)).items():  # type: ignore[misc]
            yield f"{sentence}: {text} ({', '.join(who)})."


_OF_BACKBONES = {
    "attention": "Attention of the backbone",
    "not_adapted": "What no adapter reaches",
    "chat_template": "Prompts as turns have",
}
"""Notes of records that tell what a backbone does not allow, by the beginning of their sentence."""


def row_check_notes(records: Sequence[Record]) -> Iterable[str]:
    """What was counted of the rows of each task; where records differ, of the one with most."""
    checks: dict[str, list[RowCheck]] = {}
    for record in records:
        for task, value in record.notes.get("row_checks", {}).items():
            try:
                checks.setdefault(one_line(task), []).append(RowCheck.from_json(value))
            except (KeyError, TypeError):  # of a later version
                continue
    lengths = {record.cell.protocol.max_length for record in records}
    for task, found in checks.items():
        worst = max(found, key=lambda check: (check.cut + check.repeated, str(check)))
        for sentence in worst.sentences(task, max_length=max(lengths)):
            yield sentence if len(set(found)) == 1 else f"{sentence} Other cells have fewer."


def _range(numbers: Sequence[float]) -> str:
    low, high = f"{min(numbers):.3f}", f"{max(numbers):.3f}"
    return low if low == high else f"{low} to {high}"


def _done(row: Row) -> list[Record]:
    return [record for record in row.records if record.status == "ok"]


def _versions(record: Record) -> Mapping[str, Any]:
    versions = record.provenance.get("versions")
    return versions if isinstance(versions, Mapping) else {}


def _foreign_memory(record: Record) -> str | None:
    foreign = record.provenance.get("foreign_device_bytes")
    return memory(float(foreign)) if isinstance(foreign, int | float) else None


def _rows_by_value(rows: Sequence[Row], of: Callable[[Record], Any]) -> dict[str, list[str]]:
    """Value to the rows that have it, sorted by value; with seeds where only some seeds of a row have it."""
    rows_by_value: dict[str, list[str]] = {}
    for row in rows:
        seeds: dict[str, list[int]] = {}
        done = _done(row)
        for record in done:
            value = of(record)
            if value is not None:
                seeds.setdefault(one_line(str(value)), []).append(record.cell.seed)
        for value, seeds_with_value in seeds.items():
            label = row.label if len(seeds_with_value) == len(done) else f"{row.label} {seeds_label(seeds_with_value)}"
            rows_by_value.setdefault(value, []).append(label)
    return dict(sorted(rows_by_value.items()))


def _value_list(rows_by_value: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(who)})" for value, who in rows_by_value.items())


def equal_for_all_rows(table: Table) -> str:
    """One sentence that lists what is equal for all rows."""
    p = table.protocol
    row_limits = [
        f"at most {n} {kind} rows a task" for n, kind in ((p.train_rows, "training"), (p.eval_rows, "evaluation")) if n
    ]
    seeds = {row.seeds for row in table.rows if row.seeds}
    dtypes = {str(r.provenance["dtype"]) for row in table.rows for r in _done(row) if "dtype" in r.provenance}
    items = [
        f"data {p.data}",
        f"prompts {p.prompts or 'of an unknown version'}",
        f"rows of at most {p.max_length} tokens",
        *row_limits,
        f"evaluated on {p.holdout:.0%} of the training split" if p.holdout else "",
        f"scored on {p.eval_from_train:.0%} of the training rows" if p.eval_from_train else "",
        f"{p.k_shot.replace(':', ' shots of each ')}{'' if ':' in p.k_shot else ' shots of each task'}"
        if p.k_shot
        else "",
        f"trained first on {', '.join(p.source_tasks)}, then for {_budget(p.adaptation())}" if p.sources else "",
        f"probed with {', '.join(p.probe_tasks)} before and after training" if p.probe else "",
        f"tuning effort {p.tuning}" if p.tuning != "none" and not table.searches else "",
        f"{_budget(p)} of batch {p.batch_size}",
        f"{p.mixing} mixing",
        f"loss weighted by {p.task_weighting}" if p.task_weighting != "method" else "",
        f"tasks balanced by {p.balance}" if p.balance != "none" else "",
        "batches drawn from the mixture" if p.batching == "drawn" else "batches of rows of similar length",
        f"{p.optimizer}, learning rate {p.learning_rate:g} ({p.schedule}) where a method sets none",
        f"early stopping{' by the metrics of the tasks' if p.select_by == 'metric' else ''} "
        f"({p.evals_per_run} scores a run, patience {p.patience})"
        if p.evals_per_run
        else "no early stopping",
        f"computed in {dtypes.pop().removeprefix('torch.')}" if len(dtypes) == 1 else "",
        f"backbone quantised as {p.quantize}" if p.quantize != "none" else "",
        seeds_label(*seeds) if len(seeds) == 1 else "",
        f"protocol {p.label}",
    ]
    return f"Equal for all rows: {'; '.join(filter(None, items))}."


def _budget(p: Protocol) -> str:
    return f"{p.steps} steps" if p.steps is not None else f"{p.epochs:g} epochs"
