"""Plan: what would run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mtlbench.commands.shared import plan_from
from mtlbench.options import PROTOCOL, REQUEST, with_options


@click.command()
@with_options(REQUEST)
@with_options(PROTOCOL)
@click.option("--parameters", is_flag=True, help="Count what each method trains; loads torch, but no weights.")
def plan(out: Path | None, parameters: bool, **words: Any) -> None:
    """Show what would run and what is there already; creates nothing."""
    from mtlbench.status import plan_lines
    from mtlbench.store import RunFolder

    made = plan_from(words)
    path = out or made.default_folder
    records = RunFolder(path).records() if path.is_dir() else {}
    for line in plan_lines(made.cells, records, folder=path):
        click.echo(line)
    if parameters:
        from mtlbench.engine.forecast import parameter_lines

        for line in parameter_lines(made.cells):
            click.echo(line)
