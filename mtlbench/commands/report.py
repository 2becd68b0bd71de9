"""Report: tables and documents of run folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlbench.commands.options import JSON, with_options
from mtlbench.commands.shared import DRAWS, names_in, reports_named, run_folder, show_written
from mtlbench.planning.complete import names

if TYPE_CHECKING:
    from mtlbench.results.documents import Written

FORMATS = "markdown,csv"


@click.command()
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--as",
    "formats",
    metavar="NAMES",
    shell_complete=names("reports"),
    help=f"Reports to render.  [default: {FORMATS}, none with --json]",
)
@click.option(
    "--to", type=click.Path(path_type=Path), help="Where documents go.  [default: report/ in the first FOLDER]"
)
@click.option(
    "--methods",
    metavar="NAMES",
    shell_complete=names("methods"),
    help="Show only these methods, variants or cells (starts of their keys).",
)
@click.option(
    "--tasks", metavar="NAMES", shell_complete=names("tasks"), help="Show only tables of these suites or tasks."
)
@click.option("--exclude", metavar="NAMES", help="Leave out these methods, variants or cells.")
@click.option("--vs", metavar="TABLE", help="Also print a published table beside ours, such as peml/table-2.")
@click.option("--foreign", metavar="FILES", help="Also show result files of lm-eval or peft, apart from our rows.")
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
@with_options(JSON)
def report(
    folders: tuple[Path, ...],
    formats: str | None,
    to: Path | None,
    methods: str | None,
    tasks: str | None,
    exclude: str | None,
    vs: str | None,
    foreign: str | None,
    reference: str | None,
    title: str | None,
    calibration: bool,
    bootstrap: int,
    as_json: bool,
) -> None:
    """Print the tables of run folders (the newest one by default) and write the documents.

    Several folders, such as those of several machines, make one study: a cell that two of them hold counts once, and
    folders that disagree about a cell or about the weights of a backbone are refused.
    """
    from mtlbench.errors import RequestError
    from mtlbench.published.ledger import tables_named
    from mtlbench.published.versus import versus_lines
    from mtlbench.results.data.as_json import json_text, study_json
    from mtlbench.results.data.foreign import read_foreign
    from mtlbench.results.documents import write_reports
    from mtlbench.store.several import Selection, read_results

    if as_json and vs:
        raise RequestError("--json prints our results alone. Leave out --vs, or --json.")
    stores = [run_folder(folder) for folder in folders or (None,)]
    published = tables_named(vs) if vs else ()
    reports = reports_named(formats or (None if as_json else FORMATS))
    selection = Selection(
        methods=names_in("methods", methods), tasks=names_in("tasks", tasks), exclude=names_in("exclude", exclude)
    )
    results = read_results(stores, selection=selection)
    files = [Path(name) for name in names_in("foreign", foreign)]
    rows = read_foreign(files, tasks={task for cell in results.cells for task in cell.scored})

    def tell(written: Written) -> None:
        show_written(written, documents=not as_json)

    study = write_reports(
        results,
        reports,
        to,
        reference=reference,
        draws=bootstrap,
        title=title or "",
        calibration=calibration,
        foreign=rows,
        tell=tell,
    )
    if as_json:
        click.echo(json_text("report", study_json(study)))
    for table in published:
        for line in versus_lines(table, study):
            click.echo(line)
