"""Status: what is done and missing."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.commands.options import JSON, with_options
from mtlbench.commands.shared import run_folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@with_options(JSON)
def status(folder: Path | None, as_json: bool) -> None:
    """Show what is done, running, failed and missing in a run folder."""
    from mtlbench.results.status import status_lines
    from mtlbench.text import one_line

    store = run_folder(folder)
    if as_json:
        from mtlbench.results.data.as_json import cell_states, json_text, states_counted

        states = cell_states(store.expected(), store.records(), store.running())
        content = {"folder": str(store.path), "counts": states_counted(states), "cells": states}
        click.echo(json_text("status", {**content, "problems": store.problems()}))
        return
    for line in status_lines(store.expected(), store.records(), store.running()):
        click.echo(line)
    for problem in store.problems():
        click.echo(f"note: {one_line(problem)}")
