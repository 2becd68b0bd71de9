"""Whether times and memory of rows can share a chart."""

from __future__ import annotations

from collections.abc import Sequence

from mtlbench.api.study import Row
from mtlbench.text import one_line


def differing_hardware(rows: Sequence[Row], *, memory: bool) -> str | None:
    """The reason why the rows' measurements cannot be compared, or ``None``."""
    devices = sorted(
        {
            one_line(str(record.provenance["device"]))
            for row in rows
            for record in row.records
            if record.status == "ok" and record.provenance.get("device") is not None
        }
    )
    if len(devices) > 1:
        return f"the rows were measured on different devices ({', '.join(devices)})"
    kinds = _kinds(rows)
    if memory and len(kinds) > 1:
        return f"peak memory was measured in different ways ({', '.join(kinds)})"
    return None


def memory_kind(rows: Sequence[Row]) -> str:
    """``device`` or ``process``; ``cell`` if the records do not say."""
    return " and ".join(_kinds(rows)) or "cell"


def _kinds(rows: Sequence[Row]) -> list[str]:
    return sorted({row.costs.peak_memory_kind for row in rows if row.costs and row.costs.peak_memory_kind})
