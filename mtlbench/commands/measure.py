"""Measure: what a method costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mtlbench.planning.complete import names


@click.command()
@click.option(
    "--methods",
    metavar="NAMES",
    shell_complete=names("methods"),
    help="Methods, with settings in brackets: peml,'lora[rank=16]'.",
)
@click.option("--model", metavar="NAME", help="demo (default), a folder, a hub id, random:llama-7b or random:t5-large.")
@click.option("--preset", metavar="NAME", help="A named measurement, such as peml/figure-4; options given here win.")
@click.option("--tasks", type=int, help="Tasks in the training mixture.  [default: 4]")
@click.option("--batch-size", type=int, help="Rows per step.  [default: 8]")
@click.option("--lengths", metavar="TOKENS", help="Tokens of a row: 64, or a range such as 32:128.  [default: 64]")
@click.option("--steps", type=int, help="Training steps that are timed.  [default: 30]")
@click.option("--warmup", type=int, help="Steps before them.  [default: 5]")
@click.option("--serving", metavar="N,N", help="Numbers of tasks to serve.  [default: 1,10,100]")
@click.option("--parts", metavar="NAMES", help="training, inference, serving.  [default: all]")
@click.option("--dtype", help="auto, float32 or bfloat16.  [default: auto]")
@click.option("--checkpointing/--no-checkpointing", default=None, help="Recompute layers in backward.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="[default: auto]")
@click.option("--threads", type=int, help="CPU threads.  [default: torch's choice]")
@click.option("--workers-per-device", type=int, hidden=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/measure"), show_default=True)
@click.option("--show", is_flag=True, help="Only print what --out holds.")
def measure(out: Path, show: bool, preset: str | None, **options: Any) -> None:
    """Measure time, memory, operations, energy and serving costs of methods, each in a process of its own.

    Every row goes into a JSON file in --out; the table of that folder is printed. Rows of different hardware are not
    put into one table, and rows during which something else used the machine are marked.
    """
    from mtlbench.errors import RequestError
    from mtlbench.measuring.records import read_measured
    from mtlbench.measuring.request import make_rows, with_preset
    from mtlbench.measuring.run import measure_rows
    from mtlbench.measuring.table import table_lines

    if (options.pop("workers_per_device") or 1) > 1:
        raise RequestError(
            "measure times a method alone on its device: there is one worker, and a device that `mtlbench run` uses is "
            "refused. Leave --workers-per-device out."
        )
    given = {name: value for name, value in options.items() if value is not None}
    complete = True
    if not show:
        rows = make_rows(with_preset(preset, given))
        complete = measure_rows(rows, out, log=lambda line: click.echo(line, err=True))
    measured = read_measured(out)
    if not measured:
        raise RequestError(f"{str(out)!r} holds no measurement. Make one: mtlbench measure --methods lora,peml")
    for line in table_lines(measured):
        click.echo(line)
    sys.exit(0 if complete else 1)
