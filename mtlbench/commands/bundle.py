"""Bundle: data and models for a machine without a network."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mtlbench.planning.complete import names


@click.group()
def bundle() -> None:
    """Collect data and models for machines without a network, and check what was carried there."""


@bundle.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--tasks",
    metavar="NAMES",
    shell_complete=names("tasks"),
    help="Suites or single tasks: glue, or glue/rte,glue/sst2.",
)
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="A hub id, a model folder or demo; several times."
)
@click.option("--data", default="hub", show_default=True, metavar="WHERE", help="hub, demo, or a folder of hub ids.")
def make(folder: Path, tasks: str | None, models: tuple[str, ...], data: str) -> None:
    """Write the data of --tasks and each --model to FOLDER, with a manifest of hashes and revisions."""
    from mtlbench.bundle.making import make as collect
    from mtlbench.data.choose import open_source
    from mtlbench.errors import RequestError
    from mtlbench.planning.plan import resolve_tasks

    if tasks is None and not models:
        raise RequestError(
            "Nothing to collect. Example: mtlbench bundle make --tasks glue --model google/flan-t5-large DIR"
        )
    wanted, suites = resolve_tasks(tasks) if tasks is not None else ({}, {})
    source = open_source(data, suites=suites) if wanted else None
    made = collect(folder, tasks=wanted, source=source, models=models, log=lambda line: click.echo(line, err=True))
    click.echo(f"{len(made.files)} files, {sum(made.bytes.values()):,} bytes in {folder}")
    argv = ["mtlbench", "run", "--methods", "lora", "--tasks", tasks or "glue"]
    argv += ["--data", str(folder / "data")] if wanted else []
    argv += ["--model", str(folder / "models" / next(iter(made.models)))] if made.models else []
    click.echo(f"use it with: {' '.join(argv)}", err=True)


@bundle.command()
@click.argument("folder", type=click.Path(path_type=Path))
def verify(folder: Path) -> None:
    """Name what is missing from FOLDER, changed or added; exits with 1 if anything is."""
    from mtlbench.data.manifest import problems, read

    wrong = list(problems(folder))
    for line in wrong:
        click.echo(line)
    if wrong:
        click.echo(f"{folder}: {len(wrong)} of its files are not as they were collected.", err=True)
        sys.exit(1)
    click.echo(f"{folder}: all {len(read(folder).files)} files are as they were collected.")
