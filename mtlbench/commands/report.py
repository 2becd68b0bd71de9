"""Report: tables and documents of a run folder."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.commands.shared import render_reports, reports_named, run_folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--as", "formats", default="markdown,csv", show_default=True, metavar="NAMES", help="Reports to render.")
@click.option("--to", type=click.Path(path_type=Path), help="Where documents go.  [default: FOLDER/report]")
def report(folder: Path | None, formats: str, to: Path | None) -> None:
    """Print the tables of a run folder (the newest one by default) and write the documents."""
    store = run_folder(folder)
    render_reports(store, reports_named(formats), to or store.path / "report")
