"""Statistics: one row against another, task by task."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.commands.shared import DRAWS, run_folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--method", required=True, metavar="METHOD", help="Row to look at, as tables name it.")
@click.option("--against", required=True, metavar="METHOD", help="Row to compare with.")
@click.option("--table", "number", type=int, metavar="N", help="Table of both rows, where there are several.")
@click.option("--bootstrap", type=click.IntRange(min=0), default=DRAWS, show_default=True, metavar="N")
def statistics(folder: Path | None, method: str, against: str, number: int | None, bootstrap: int) -> None:
    """Test two rows of a run folder against each other: over seeds and examples, and on these very examples."""
    from mtlbench.results.pairs import pair_of, statistics_lines
    from mtlbench.statistics.answers import answers_in

    store = run_folder(folder)
    pair = pair_of(store.records().values(), method=method, against=against, number=number)
    predictions = answers_in(store, [*pair.row.records, *pair.against.records])
    for line in statistics_lines(pair, predictions=predictions, draws=bootstrap):
        click.echo(line)
