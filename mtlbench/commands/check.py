"""Check: whether methods and suites keep their promises."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from mtlbench.planning.complete import names as complete

if TYPE_CHECKING:
    from mtlbench.api.method import Method
    from mtlbench.api.task import TaskSuite
    from mtlbench.conformance.findings import Finding
    from mtlbench.conformance.suites import TaskFinding


@click.command()
@click.argument(
    "names", metavar="NAMES", shell_complete=complete("methods", "tasks", "reports", "observers", "executors")
)
@click.option("--data", metavar="WHERE", help="Rows of a suite: demo, hub, or a folder.  [default: demo]")
def check(names: str, data: str | None) -> None:
    """Check that methods keep their promises, on a tiny Llama and a tiny T5: lora, or 'lora[rank=4]',peml.

    Names of suites or tasks (glue, or clue16/tnews,superglue) check tasks on the demo data, or on --data; names of
    reports, observers and executors check these. Prints one
    line per check: ok, skipped with the reason, or failed with what to change. Exit code 1 when one failed, and when a
    method refused both backbones, so that no promise was examined.
    """
    from mtlbench.conformance.kit import methods_named, suites_named
    from mtlbench.conformance.others import group_of
    from mtlbench.errors import RequestError

    others = {name.strip(): group_of(name.strip()) for name in names.split(",")}
    if all(others.values()) and data is None:
        failed = [_other_fails(name, group) for name, group in others.items() if group]
        sys.exit(1 if any(failed) else 0)
    suites = suites_named(names)
    if suites:
        _check_suites(suites, data or "demo")
    if data is not None:
        raise RequestError(f"--data is for suites, and {names!r} is none.")

    methods = methods_named(names)
    failed = [_fails(name, method) for name, method in methods.items()]
    sys.exit(1 if any(failed) else 0)


def _fails(name: str, method: Method) -> bool:
    from mtlbench.conformance.kit import method_findings, unexamined

    titles: set[str] = set()

    def show(finding: Finding) -> None:
        if finding.backbone not in titles:
            titles.add(finding.backbone)
            click.echo(f"{name} on {finding.backbone}")
        click.echo(f"  {finding.outcome:<8}{finding.check:<20}{finding.message}")

    findings = method_findings(method, on_finding=show)
    nothing = unexamined(method, findings)
    if nothing is not None:
        click.echo(f"{name}: {nothing}")
    return nothing is not None or any(finding.outcome == "failed" for finding in findings)


def _other_fails(name: str, group: str) -> bool:
    from mtlbench.conformance.others import plugin_findings

    def show(finding: Finding) -> None:
        click.echo(f"  {finding.outcome:<8}{finding.check:<20}{finding.message}")

    click.echo(f"{group[:-1]} {name}")
    return any(finding.outcome == "failed" for finding in plugin_findings(group, name, on_finding=show))


def _check_suites(suites: list[TaskSuite], data: str) -> None:
    from mtlbench.conformance.suites import suite_findings

    def show(finding: TaskFinding) -> None:
        outcome = "ok" if finding.ok else "failed"
        click.echo(f"  {outcome:<8}{finding.check:<12}{finding.task:<30}  {finding.message}")

    findings = [finding for suite in suites for finding in suite_findings(suite, data=data, on_finding=show)]
    sys.exit(0 if all(finding.ok for finding in findings) else 1)
