"""Each row in a process of its own: memory starts empty, and a row that fails takes no other with it."""

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


def measure_rows(rows: Sequence[MeasureRow], folder: Path, *, tell: Callable[[str], None]) -> bool:
    """Measure every row into ``folder``; says whether each came back, refusals included.

    Raises:
        RequestError: the backbone's weights do not fit, or the first row shows that the folder's rows were measured on
            other hardware; it is not kept.
    """
    complete = True
    for line in forecast(rows):
        tell(line)
    for row in rows:
        tell(f"measuring {row.variant} on {row.model}")
        measured = _measured(row)
        check_hardware([*_others(folder, row), measured])
        path = write_measured(folder, row.name, measured)
        if measured["status"] != "ok":
            tell(f"{row.variant}: {measured['status']}: {one_line(str(measured.get('reason', '')))}")
        complete = complete and measured["status"] in ("ok", "refused")
        tell(f"wrote {path}")
    return complete


def _others(folder: Path, row: MeasureRow) -> list[Measured]:
    return [found for found in read_measured(folder) if MeasureRow.from_json(found["row"]) != row]


def _measured(row: MeasureRow) -> Measured:
    """The result of the row's process, or ``failed`` with its last words."""
    with tempfile.TemporaryDirectory(prefix="mtlbench-") as scratch:
        request, answer = Path(scratch) / "row.json", Path(scratch) / "result.json"
        request.write_text(json.dumps(row.to_json()))
        done = subprocess.run(
            [sys.executable, "-m", "mtlbench.measuring.measure", str(request), str(answer)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if answer.exists():
            measured: Measured = json.loads(answer.read_text())
            return measured
    lines = done.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"the process ended with {done.returncode}"
    return {
        "row": row.to_json(),
        "status": "failed",
        "measured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "reason": reason,
    }
