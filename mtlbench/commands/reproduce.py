"""Reproduce: a cell again from its record."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mtlbench.api.record import Record
    from mtlbench.results.reproduction import FoundRecord
    from mtlbench.store import RunFolder


@click.command()
@click.argument("record", type=click.Path(path_type=Path))
@click.argument("key", required=False)
@click.option("--to", type=click.Path(path_type=Path), help="Run folder of the new run.  [default: a temporary one]")
@click.option("--data", metavar="WHERE", help="demo, hub or a folder, where the record's folder does not say it.")
@click.option("--tolerance", type=click.FloatRange(min=0), default=0.0, show_default=True, metavar="POINTS")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def reproduce(record: Path, key: str | None, to: Path | None, data: str | None, tolerance: float, device: str) -> None:
    """Run a cell again and print what differs, field by field.

    RECORD is records/<key>.json of a run folder, or a run folder followed by the start of a cell's KEY. Exits with 1
    when a score differs by more than --tolerance points.
    """
    from mtlbench.results.reproduction import differences, find_record, lines, scores_differ
    from mtlbench.store import RunFolder

    known = find_record(record, key)
    with ExitStack() as stack:
        path = to or Path(stack.enter_context(TemporaryDirectory(prefix="mtlbench-"))) / "run"
        folder = RunFolder(path)
        again = _run(known, folder, data=data, device=device)
        steps = known.folder.steps(known.record.key), folder.steps(again.key)
        changed = differences(known.record, again, steps=steps)
    cell = known.record.cell
    click.echo(f"{cell.variant}, seed {cell.seed}, cell {cell.key}: the record -> again")
    for line in lines(changed):
        click.echo(line)
    sys.exit(1 if scores_differ(changed, tolerance=tolerance) else 0)


def _run(known: FoundRecord, folder: RunFolder, *, data: str | None, device: str) -> Record:
    from mtlbench.backbones.names import check_model, check_reachable, found_model
    from mtlbench.errors import StoreError
    from mtlbench.executors.runner import run as run_cells
    from mtlbench.plugins import load_executor, load_observers
    from mtlbench.results.reproduction import cell_now, data_source

    cell = cell_now(known.record.cell)
    where = data or data_source(known)
    model = found_model(cell, known.folder.model_places(cell)) or cell.model
    check_model(model)
    check_reachable(model)
    folder.preflight()
    source = where if where in ("demo", "hub") else str(Path(where).resolve())
    places = folder.models_in([replace(cell, model=model)])
    request = folder.put_request({"data": source, "reproduces": known.record.key, **places}, [cell])
    observers = load_observers(partial(click.echo, err=True))
    code = run_cells(folder, request, [cell], load_executor("local"), observers, device=device, workers=1)
    if code == 130:
        sys.exit(code)
    again = folder.record(cell.key)
    if again is None:
        raise StoreError(f"The cell left no record in {str(folder.path)!r}; its log is in logs/.")
    return again
