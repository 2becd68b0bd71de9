"""Under what circumstances the records of a table were made, where those differ between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mtlbench.api.cell import Protocol
from mtlbench.api.record import Record
from mtlbench.api.study import Row, Table
from mtlbench.text import memory, one_line, seed_words


def circumstances(rows: Sequence[Row]) -> Iterable[str]:
    """A sentence for each library version and number of devices that is not the same for all scored records, and for
    devices that other programs used too."""
    for name in sorted({name for row in rows for record in _done(row) for name in _versions(record)}):
        found = _who(rows, lambda record, name=name: _versions(record).get(name))  # type: ignore[misc]
        if len(found) > 1:
            yield f"Records were made with different versions of {one_line(name)}: {_words(found)}."
    devices = _who(rows, lambda record: str(record.provenance.get("processes", 1)))
    if len(devices) > 1:
        yield (
            "Cells ran on different numbers of devices, so times and memory are not comparable between them: "
            f"{_words(devices)}."
        )
    shared = _who(rows, _taken)
    if shared:
        yield (
            "Other programs had taken memory of the device when these cells ran, so their times are not comparable: "
            f"{_words(shared)}."
        )


def _done(row: Row) -> list[Record]:
    return [record for record in row.records if record.status == "ok"]


def _versions(record: Record) -> Mapping[str, Any]:
    found = record.provenance.get("versions")
    return found if isinstance(found, Mapping) else {}


def _taken(record: Record) -> str | None:
    taken = record.provenance.get("foreign_device_bytes")
    return memory(float(taken)) if isinstance(taken, int | float) else None


def _who(rows: Sequence[Row], of: Callable[[Record], Any]) -> dict[str, list[str]]:
    """Value to the rows with it, in the order of values; the seeds are told where not all of a row have it."""
    found: dict[str, list[str]] = {}
    for row in rows:
        seeds: dict[str, list[int]] = {}
        done = _done(row)
        for record in done:
            value = of(record)
            if value is not None:
                seeds.setdefault(one_line(str(value)), []).append(record.cell.seed)
        for value, some in seeds.items():
            words = row.label if len(some) == len(done) else f"{row.label} {seed_words(some)}"
            found.setdefault(value, []).append(words)
    return dict(sorted(found.items()))


def _words(found: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(who)})" for value, who in found.items())


def equal_words(table: Table) -> str:
    """What is equal for all rows, in a sentence."""
    p = table.protocol
    rows = [
        f"at most {n} {kind} rows a task" for n, kind in ((p.train_rows, "training"), (p.eval_rows, "evaluation")) if n
    ]
    seeds = {row.seeds for row in table.rows if row.seeds}
    words = [
        f"data {p.data}",
        f"prompts {p.prompts or 'of an unknown version'}",
        f"rows of at most {p.max_length} tokens",
        *rows,
        f"evaluated on {p.holdout:.0%} of the training split" if p.holdout else "",
        f"scored on {p.eval_from_train:.0%} of the training rows" if p.eval_from_train else "",
        f"{p.k_shot.replace(':', ' shots of each ')}{'' if ':' in p.k_shot else ' shots of each task'}"
        if p.k_shot
        else "",
        f"trained first on {', '.join(p.source_tasks)}, then for {_budget(p.adaptation())}" if p.sources else "",
        f"tuning effort {p.tuning}" if p.tuning != "none" else "",
        f"{_budget(p)} of batch {p.batch_size}",
        f"{p.mixing} mixing",
        "steps drawn from the mixture" if p.batching == "drawn" else "rows of like length in a step, so few tasks",
        f"{p.optimizer}, learning rate {p.learning_rate:g} ({p.schedule}) where a method sets none",
        f"early stopping ({p.evals_per_run} scores a run, patience {p.patience})"
        if p.evals_per_run
        else "no early stopping",
        seed_words(*seeds) if len(seeds) == 1 else "",
        f"protocol {p.label}",
    ]
    return f"Equal for all rows: {'; '.join(filter(None, words))}."


def _budget(p: Protocol) -> str:
    return f"{p.steps} steps" if p.steps is not None else f"{p.epochs:g} epochs"
