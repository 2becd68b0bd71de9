"""Forget: take cells of a run folder out of its tables."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.commands.shared import run_folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("names")
def forget(folder: Path, names: str) -> None:
    """Take cells out of the tables and the status of a run folder: by method, variant or key, or by a request's id.

    Keys are shown by `mtlbench status --keys`. Nothing is deleted: records and outputs move to FOLDER/forgotten. A
    command that asks for such a cell again runs it again.
    """
    from mtlbench.planning.request import cells_named
    from mtlbench.store.requests import cells_of

    store = run_folder(folder)
    request = next((one for one in store.requests() if one["id"] == names), None)
    cells = {cell.key: cell for cell in [*store.expected(), *(record.cell for record in store.records().values())]}
    if request is not None:
        others = {c.key for one in store.requests() if one["id"] != names for c in cells_of(one)}
        chosen = tuple(cell for cell in cells_of(request) if cell.key in cells and cell.key not in others)
    else:
        chosen = cells_named(cells.values(), names)
    store.forget(cell.key for cell in chosen)
    for cell in chosen:
        click.echo(f"forgotten: {cell.key} {cell.variant} seed {cell.seed}")
