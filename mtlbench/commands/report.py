"""Report: tables and documents of a run folder."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from mtlbench.commands.shared import DRAWS, render_reports, reports_named, run_folder
from mtlbench.commands.versus import print_versus, tables_named


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--as", "formats", default="markdown,csv", show_default=True, metavar="NAMES", help="Reports to render.")
@click.option("--to", type=click.Path(path_type=Path), help="Where documents go.  [default: FOLDER/report]")
@click.option("--vs", metavar="TABLE", help="Also print a published table beside ours, such as peml/table-2.")
@click.option("--reference", metavar="METHOD", help="Row to compare with.  [default: lora_st, lora or the best]")
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=DRAWS,
    show_default=True,
    metavar="N",
    help="Resamples of the examples behind tests and intervals; 0 lets only the seeds vary.",
)
def report(
    folder: Path | None, formats: str, to: Path | None, vs: str | None, reference: str | None, bootstrap: int
) -> None:
    """Print the tables of a run folder (the newest one by default) and write the documents."""
    store = run_folder(folder)
    published = tables_named(vs) if vs else ()
    gc.disable()  # looking for cycles among thousands of records takes a tenth of the time, and frees 80 MB
    try:
        render_reports(store, reports_named(formats), to or store.path / "report", reference=reference, draws=bootstrap)
    finally:
        gc.enable()
    if published:
        print_versus(store, published)
