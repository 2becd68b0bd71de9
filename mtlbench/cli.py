"""The command line: words in, one call, exit code out. A command is a file in ``commands`` and a line here."""

from __future__ import annotations

import sys

import click

from mtlbench.commands.bundle import bundle
from mtlbench.commands.check import check
from mtlbench.commands.compare import compare
from mtlbench.commands.export import export
from mtlbench.commands.list_ import list_
from mtlbench.commands.measure import measure
from mtlbench.commands.plan import plan
from mtlbench.commands.published import published
from mtlbench.commands.report import report
from mtlbench.commands.reproduce import reproduce
from mtlbench.commands.run import run
from mtlbench.commands.seeds import seeds
from mtlbench.commands.statistics import statistics
from mtlbench.commands.status import status
from mtlbench.commands.tune import tune


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="mtlbench")
def cli() -> None:
    """Compare multi-task parameter-efficient fine-tuning methods: same data, prompts, budget and seeds."""


for command in (
    run,
    plan,
    tune,
    report,
    status,
    statistics,
    seeds,
    compare,
    reproduce,
    measure,
    export,
    published,
    list_,
    check,
    bundle,
):
    cli.add_command(command)


def main() -> None:
    """Entry point: a wrong request prints one line and exits with 2."""
    from mtlbench.errors import MtlbenchError
    from mtlbench.files.redact import guard_terminal, redact

    guard_terminal()
    try:
        cli()
    except MtlbenchError as error:
        click.echo(f"mtlbench: {redact(str(error))}", err=True)
        sys.exit(2)
