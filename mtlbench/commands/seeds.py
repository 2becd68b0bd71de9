"""Seeds: how many it takes to see a difference."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.commands.shared import run_folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--method", required=True, metavar="METHOD", help="Row to look at, as tables name it.")
@click.option("--against", required=True, metavar="METHOD", help="Row to compare with.")
@click.option("--table", "number", type=int, metavar="N", help="Table of both rows, where there are several.")
@click.option("--task", metavar="TASK", help="Full name, or average.  [default: every task and the average]")
@click.option("--points", type=float, default=1.0, show_default=True, help="Difference to be seen.")
@click.option("--alpha", type=float, default=0.05, show_default=True, help="Chance of seeing one that is not there.")
@click.option("--power", type=float, default=0.8, show_default=True, help="Chance of seeing it.")
def seeds(
    folder: Path | None,
    method: str,
    against: str,
    number: int | None,
    task: str | None,
    points: float,
    alpha: float,
    power: float,
) -> None:
    """Say how many seeds it takes to see a difference, from the spread measured in a run folder."""
    from mtlbench.results.pairs import pair_of, seeds_lines

    pair = pair_of(run_folder(folder).records().values(), method=method, against=against, number=number)
    for line in seeds_lines(pair, task=task, wanted=points, level=alpha, power=power):
        click.echo(line)
