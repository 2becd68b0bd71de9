"""Report: tables and documents of a run folder."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlbench.commands.shared import DRAWS, render_reports, reports_named, run_folder

if TYPE_CHECKING:
    from mtlbench.published.paper import PublishedTable
    from mtlbench.store import RunFolder


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


def tables_named(words: str) -> tuple[PublishedTable, ...]:
    """The published table that ``--vs`` names, or its parts."""
    from mtlbench.published import ledger

    return ledger.tables_named(words)


def print_versus(store: RunFolder, published: Iterable[PublishedTable]) -> None:
    """Print published tables beside those of a run folder."""
    from mtlbench.commands.shared import DRAWS
    from mtlbench.published.versus import versus_lines
    from mtlbench.results.study import study_of
    from mtlbench.statistics.answers import answers_in

    records = store.records().values()
    study = study_of(records, expected=store.expected(), predictions=answers_in(store, records), draws=DRAWS)
    for table in published:
        for line in versus_lines(table, study):
            click.echo(line)
