"""Report: tables and documents of a run folder."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.commands.shared import DRAWS, reports_named, run_folder, show_written


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--as", "formats", default="markdown,csv", show_default=True, metavar="NAMES", help="Reports to render.")
@click.option("--to", type=click.Path(path_type=Path), help="Where documents go.  [default: FOLDER/report]")
@click.option("--vs", metavar="TABLE", help="Also print a published table beside ours, such as peml/table-2.")
@click.option("--reference", metavar="METHOD", help="Row to compare with.  [default: lora_st, lora or the best]")
@click.option("--title", metavar="TEXT", help="What the study is called.  [default: its tasks and backbone]")
@click.option(
    "--calibration", is_flag=True, help="Also show calibration error and Brier score by task; html and csv always do."
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=DRAWS,
    show_default=True,
    metavar="N",
    help="Resamples of the examples behind tests and intervals; 0 lets only the seeds vary.",
)
def report(
    folder: Path | None,
    formats: str,
    to: Path | None,
    vs: str | None,
    reference: str | None,
    title: str | None,
    calibration: bool,
    bootstrap: int,
) -> None:
    """Print the tables of a run folder (the newest one by default) and write the documents."""
    from mtlbench.published.ledger import tables_named
    from mtlbench.published.versus import versus_lines
    from mtlbench.results.documents import write_reports

    store = run_folder(folder)
    published = tables_named(vs) if vs else ()
    reports, named = reports_named(formats), title or ""
    study = write_reports(
        store,
        reports,
        to,
        reference=reference,
        draws=bootstrap,
        title=named,
        calibration=calibration,
        tell=show_written,
    )
    for table in published:
        for line in versus_lines(table, study):
            click.echo(line)
