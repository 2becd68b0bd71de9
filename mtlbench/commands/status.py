"""Status: what is done and missing."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.commands.options import JSON, with_options
from mtlbench.commands.shared import run_folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--keys", is_flag=True, help="Also the key of every cell, for `mtlbench show` and `mtlbench forget`.")
@with_options(JSON)
def status(folder: Path | None, keys: bool, as_json: bool) -> None:
    """Show what is done, running, failed and missing in a run folder."""
    from mtlbench.results.status import earlier_lines, status_lines
    from mtlbench.text import one_line

    store = run_folder(folder)
    cells, records = store.expected(), store.records()
    if as_json:
        from mtlbench.results.data.as_json import cell_states, json_text, states_counted

        states = cell_states(cells, records, store.running())
        content = {"folder": str(store.path), "counts": states_counted(states), "cells": states}
        click.echo(json_text("status", {**content, "problems": store.problems(records)}))
        return
    for line in [*status_lines(cells, records, store.running()), *earlier_lines(cells, records)]:
        click.echo(line)
    for cell in cells if keys else ():
        click.echo(f"{cell.key}  {one_line(cell.variant)} seed {cell.seed}")
    for problem in store.problems(records):
        click.echo(f"note: {one_line(problem)}")
