"""Check: whether methods and suites keep their promises."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mtlbench.api.task import TaskSuite


@click.command()
@click.argument("names", metavar="NAMES")
@click.option("--data", metavar="WHERE", help="Rows of a suite: demo, hub, or a folder.  [default: demo]")
def check(names: str, data: str | None) -> None:
    """Check that methods keep their promises, on a tiny Llama and a tiny T5: lora, or 'lora[rank=4]',peml.

    Names of suites or tasks (glue, or clue16/tnews,superglue) check tasks on the demo data, or on --data. Prints one
    line per check: ok, skipped with the reason, or failed with what to change. Exit code 1 when one failed.
    """
    from mtlbench.conformance.kit import methods_named, suites_named
    from mtlbench.errors import RequestError

    suites = suites_named(names)
    if suites:
        _check_suites(suites, data or "demo")
    if data is not None:
        raise RequestError(f"--data is for suites, and {names!r} is none.")

    methods = methods_named(names)
    from mtlbench.conformance.kit import check_method

    failed = False
    for name, method in methods.items():
        backbone = None
        for finding in check_method(method):
            if finding.backbone != backbone:
                backbone = finding.backbone
                click.echo(f"{name} on {backbone}")
            click.echo(f"  {finding.outcome:<8}{finding.check:<20}{finding.message}")
            failed |= finding.outcome == "failed"
    sys.exit(1 if failed else 0)


def _check_suites(suites: list[TaskSuite], data: str) -> None:
    from mtlbench.conformance.suites import check_suite

    failed = False
    for suite in suites:
        for finding in check_suite(suite, data=data):
            outcome = "ok" if finding.ok else "failed"
            click.echo(f"  {outcome:<8}{finding.check:<12}{finding.task:<30}  {finding.message}")
            failed |= not finding.ok
    sys.exit(1 if failed else 0)
