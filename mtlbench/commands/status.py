"""Status: what is done and missing."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.commands.shared import run_folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
def status(folder: Path | None) -> None:
    """Show what is done, running, failed and missing in a run folder."""
    from mtlbench.results.status import status_lines
    from mtlbench.text import one_line

    store = run_folder(folder)
    for line in status_lines(store.expected(), store.records(), store.running()):
        click.echo(line)
    for problem in store.problems():
        click.echo(f"note: {one_line(problem)}")
