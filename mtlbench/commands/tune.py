"""Tune: search the settings of a method."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mtlbench.commands.options import LIMITS, PROTOCOL, TRACK, WORKERS, with_options
from mtlbench.commands.shared import limits_from
from mtlbench.planning.complete import names


@click.command()
@click.option(
    "--method",
    metavar="NAME",
    shell_complete=names("methods"),
    help="One method; settings in brackets stay fixed: peml, 'peml[layers=4]'.",
)
@click.option(
    "--tasks",
    metavar="NAMES",
    shell_complete=names("tasks"),
    help="Suites or single tasks: glue, or glue/rte,glue/sst2.",
)
@click.option("--model", metavar="NAME", help="demo (default), demo-t5, a local model folder or a hub id.")
@click.option("--data", metavar="WHERE", help="demo, hub, or a folder that mirrors hub ids.")
@click.option("--search", "searches", multiple=True, metavar="FIELD=VALUES", help="rank=4:64:log or dropout=0.0,0.1.")
@click.option("--budget", help="paper, standard or quick; options given here win.  [default: standard]")
@click.option("--trials", type=int, help="How many settings are tried.  [default: 100, 20 or 8 by budget]")
@click.option("--pruning", help="none, median or halving.  [default: none]")
@click.option("--at-once", type=int, help="Trials asked before their results are known.  [default: 4, or 2 if quick]")
@click.option("--seed", type=int, help="Seed of the search.  [default: 0]")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/TASKS-MODEL-tuning]")
@click.option("--to-optuna", metavar="URL", help="Copy the study to an Optuna storage, such as sqlite:///tuning.db.")
@with_options(TRACK)
@with_options(WORKERS)
@with_options(LIMITS)
@with_options(PROTOCOL)
def tune(
    out: Path | None,
    to_optuna: str | None,
    executor: str,
    workers: int,
    device: str,
    track: str | None,
    **options: Any,
) -> None:
    """Search the settings of a method with Optuna's TPE, on held-out training rows; the same command resumes it."""
    from mtlbench.errors import RequestError
    from mtlbench.planning.sweeps import refuse_sweep
    from mtlbench.tuning.command import tune as search
    from mtlbench.tuning.tuning import TuningOptions

    limits = limits_from(options)
    given = {name: value for name, value in options.items() if value is not None}
    refuse_sweep(given, "mtlbench tune")
    for needed in ("method", "tasks"):
        if needed not in given:
            raise RequestError(
                f"--{needed} is missing. Example: mtlbench tune --method peml --tasks glue --budget quick"
            )
    named = {name: given.pop(name) for name in TuningOptions.names() if name in given}
    code = search(
        TuningOptions(**named, protocol=given),
        out=out,
        to_optuna=to_optuna,
        executor=executor,
        workers=workers,
        device=device,
        track=track,
        limits=limits,
        echo=click.echo,
        log=lambda line: click.echo(line, err=True),
    )
    sys.exit(code)
