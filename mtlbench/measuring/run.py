"""Measures each row in its own process, so that memory starts empty and a failure does not affect other rows."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mtlbench.measuring.forecast import forecast
from mtlbench.measuring.records import Measured, check_hardware, read_measured, write_measured
from mtlbench.measuring.request import MeasureRow
from mtlbench.text import one_line


def measure_rows(rows: Sequence[MeasureRow], folder: Path, *, log: Callable[[str], None]) -> bool:
    """Measure every row into ``folder``; returns whether all were measured or refused.

    Raises:
        RequestError: the backbone's weights do not fit, or the first row shows that the folder's rows were measured on
            other hardware; that row is not written.
    """
    complete = True
    for line in forecast(rows):
        log(line)
    for row in rows:
        log(f"measuring {row.variant} on {row.model}")
        measured = _measured(row)
        check_hardware([*_others(folder, row), measured])
        path = write_measured(folder, row.name, measured)
        if measured["status"] != "ok":
            log(f"{row.variant}: {measured['status']}: {one_line(str(measured.get('reason', '')))}")
        complete = complete and measured["status"] in ("ok", "refused")
        log(f"wrote {path}")
    return complete


def _others(folder: Path, row: MeasureRow) -> list[Measured]:
    return [other for other in read_measured(folder) if MeasureRow.from_json(other["row"]) != row]


def _measured(row: MeasureRow) -> Measured:
    """The result of the row's process, or ``failed`` with its last line of output."""
    with tempfile.TemporaryDirectory(prefix="mtlbench-") as scratch:
        row_file, result_file = Path(scratch) / "row.json", Path(scratch) / "result.json"
        row_file.write_text(json.dumps(row.to_json()))
        done = subprocess.run(
            [sys.executable, "-m", "mtlbench.measuring.measure", str(row_file), str(result_file)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if result_file.exists():
            measured: Measured = json.loads(result_file.read_text())
            return measured
    lines = done.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"the process ended with {done.returncode}"
    return {
        "row": row.to_json(),
        "status": "failed",
        "measured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "reason": reason,
    }
