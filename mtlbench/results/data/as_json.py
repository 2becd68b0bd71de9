"""What commands print with ``--json``: one JSON object each, described field by field in docs/schemas.md."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.api.study import Study, Table
from mtlbench.results.data.tidy import OF_A_STUDY, tidy

if TYPE_CHECKING:
    from mtlbench.plugins import Offer
    from mtlbench.results.regression import Change, RecordSet
    from mtlbench.store.claims import InFlight

SCHEMA = 1
"""Version of these layouts; it grows when a field changes its meaning or goes."""


def json_text(kind: str, content: Mapping[str, Any]) -> str:
    """``content`` as one JSON object that says what it is; numbers that are none are ``null``."""
    return json.dumps({"schema": SCHEMA, "kind": kind, **_plain(content)}, ensure_ascii=False, allow_nan=False)


def study_json(study: Study) -> dict[str, Any]:
    """The tables of a study, and its rows as in the csv files."""
    return {
        "title": study.title,
        "notes": list(study.notes),
        "counts": dict(study.counts),
        "tables": [_table(number, table) for number, table in enumerate(study.tables, start=1)],
        **{name: tidy(study, name) for name in OF_A_STUDY},
    }


def _table(number: int, table: Table) -> dict[str, Any]:
    return {
        "table": number,
        "title": table.title,
        "model": table.model,
        "tasks": list(table.tasks),
        "protocol": {"hash": table.protocol.hash(), **asdict(table.protocol)},
        "differs": dict(table.differs),
        "reference": table.reference,
        "tests": table.tests,
        "notes": list(table.notes),
        "rows": [
            {
                "label": row.label,
                "variant": row.variant,
                "seeds": list(row.seeds),
                "planned": row.planned,
                "average": row.average.scores.mean if row.average else None,
                "sd": row.average.scores.sd if row.average else None,
                "low": row.average.interval.low if row.average and row.average.interval else None,
                "high": row.average.interval.high if row.average and row.average.interval else None,
                "best": row.average.best if row.average else None,
                "outcome": row.outcome,
            }
            for row in table.rows
        ],
    }


def cell_states(
    cells: Iterable[Cell], records: Mapping[str, Record], running: Iterable[InFlight] = ()
) -> list[dict[str, Any]]:
    """Every cell once with its state: ``ok``, ``failed``, ``skipped``, ``running`` or ``missing``."""
    claims = {claim.key: claim for claim in running}
    return [
        _cell_state(cell, records.get(key), claims.get(key)) for key, cell in {cell.key: cell for cell in cells}.items()
    ]


def _cell_state(cell: Cell, record: Record | None, claim: InFlight | None) -> dict[str, Any]:
    status = record.status if record is not None else "missing" if claim is None else "running"
    failure = record.failure if record is not None else None
    return {
        "key": cell.key,
        "variant": cell.variant,
        "method": cell.method,
        "settings": dict(cell.settings),
        "seed": cell.seed,
        "tasks": list(cell.tasks),
        "model": cell.model,
        "protocol": cell.protocol.hash(),
        "plugins": dict(cell.plugins),
        "status": status,
        "average": record.average if record is not None and record.status == "ok" else None,
        "total_seconds": record.costs.total_seconds if record is not None and record.costs else None,
        "failure": asdict(failure) if failure else None,
        "progress": None
        if claim is None or record is not None
        else {"step": claim.step, "total_steps": claim.total_steps, "loss": claim.loss, "owner": claim.owner},
    }


def states_counted(states: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """State to its number of cells."""
    names = ("ok", "failed", "skipped", "running", "missing")
    return {name: sum(state["status"] == name for state in states) for name in names}


def comparison_json(one: RecordSet, other: RecordSet, changes: Iterable[Change]) -> dict[str, Any]:
    """One pair of ``compare``: its sides, and what changed on each task."""
    return {
        "before": one.name,
        "after": other.name,
        "changes": [
            {
                "task": change.task,
                "before": change.before,
                "after": change.after,
                "points": change.after - change.before,
                "low": change.interval.low if change.interval else None,
                "high": change.interval.high if change.interval else None,
                "p": change.p,
                "dropped": change.dropped,
                "verdict": change.verdict,
            }
            for change in changes
        ],
    }


def offer_json(offer: Offer, *, clash: bool) -> dict[str, Any]:
    """One name of ``list``; ``clash`` says that another package offers it too, so that it cannot be used."""
    return {
        "name": offer.name,
        "distribution": offer.distribution,
        "version": offer.version,
        "module": offer.module,
        "clash": clash,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
