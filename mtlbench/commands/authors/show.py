"""Show: what one name stands for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlbench.commands.shared import run_folder
from mtlbench.planning.complete import names

if TYPE_CHECKING:
    from mtlbench.api.record import Record


@click.command()
@click.argument("name", shell_complete=names("methods", "tasks", "presets", "protocols"))
@click.argument("folder", type=click.Path(path_type=Path), required=False)
def show(name: str, folder: Path | None) -> None:
    """Show a method (settings with default and meaning), a suite, a preset, a protocol, or the cells of a run folder.

    Cells are named by the start of a key (`mtlbench status --keys`), or by a method if FOLDER is given: a failed one
    with its frames.
    """
    from mtlbench.planning.request import KEY_LETTERS, cells_named
    from mtlbench.planning.showing import shown

    is_key = len(name) >= KEY_LETTERS and not set(name) - set("0123456789abcdef")
    if folder is None and not is_key:
        for line in shown(name):
            click.echo(line)
        return
    store = run_folder(folder)
    records = store.records()
    cells = {cell.key: cell for cell in [*store.expected(), *(record.cell for record in records.values())]}
    for cell in cells_named(cells.values(), name):
        click.echo(f"cell {cell.key}: {cell.variant} seed {cell.seed} on {', '.join(cell.tasks)}")
        for line in _lines(records[cell.key]) if cell.key in records else ["  no record yet"]:
            click.echo(line)


def _lines(record: Record) -> Iterator[str]:
    from mtlbench.text import one_line

    cell = record.cell
    yield f"  {record.status}, protocol {cell.protocol.label}, model {one_line(cell.model)}"
    of = [*cell.plugins.items(), *((name, f"source {said}") for name, said in cell.sources.items())]
    yield f"  {'; '.join(f'{name} {said}' for name, said in of)}"
    for task, score in record.scores.items():
        metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in score.metrics.items())
        yield f"  {task}: {score.score:.2f} ({metrics}; {score.rows} rows)"
    if record.failure is not None:
        yield f"  {record.failure.kind}: {one_line(record.failure.message)}"
        yield f"  {one_line(record.failure.next_step)}"
        yield from (f"    {one_line(frame)}" for frame in record.failure.frames)
