"""Run: train and evaluate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mtlbench.commands.shared import plan_from, render_reports, reports_named
from mtlbench.options import PROTOCOL, REQUEST, WORKERS, with_options


@click.command()
@with_options(REQUEST)
@with_options(WORKERS)
@with_options(PROTOCOL)
@click.option("--as", "formats", metavar="NAMES", help="Reports to render at the end, such as markdown,charts.")
def run(out: Path | None, executor: str, workers: int, device: str, formats: str | None, **words: Any) -> None:
    """Train and evaluate every method; the same command again does only what is missing."""
    from mtlbench.models import check_reachable
    from mtlbench.plan import preset_reports
    from mtlbench.plugins import load_executor, load_observer, offers
    from mtlbench.runner import run as run_cells
    from mtlbench.store import RunFolder

    reports = reports_named(formats or preset_reports(words["preset"]))
    plan = plan_from(words)
    starter = load_executor(executor)
    observers = {name: load_observer(name) for name in offers("observers")}
    check_reachable(plan.request.model)
    folder = RunFolder(out or plan.default_folder)
    folder.preflight()
    request = folder.put_request(plan.request.to_json(), plan.cells)
    code = run_cells(folder, request, plan.cells, starter, observers, device=device, workers=workers)
    click.echo(f"Records are in {folder.path}. Show the table with: mtlbench report {folder.path}", err=True)
    if reports and code != 130:
        render_reports(folder, reports, folder.path / "report")
    sys.exit(code)
