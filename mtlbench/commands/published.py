"""Published: the ledger of tables in papers."""

from __future__ import annotations

from collections.abc import Iterable

import click


@click.group()
def published() -> None:
    """Published result tables as data: list them, show one, audit what they contradict."""


@published.command("list")
@click.argument("paper", required=False)
def list_papers(paper: str | None) -> None:
    """List the papers of all installed ledgers, or the one of PAPER (a name, or a JSON file)."""
    from mtlbench.published.ledger import papers_named
    from mtlbench.published.views import list_lines

    _say(list_lines(papers_named(paper).values()))


@published.command()
@click.argument("table")
def show(table: str) -> None:
    """Show a table such as peml/table-2, its averages recomputed."""
    from mtlbench.published.ledger import tables_named
    from mtlbench.published.views import table_lines

    for at, part in enumerate(tables_named(table)):
        _say([*([""] if at else []), *table_lines(part)])


@published.command()
@click.argument("paper", required=False)
def audit(paper: str | None) -> None:
    """Recompute averages and claims, check which values are possible, find rows that contradict each other.

    PAPER is a name or a JSON file; without it every installed ledger is audited. A finding says what does not add up,
    not why.
    """
    from mtlbench.published.ledger import papers_named
    from mtlbench.published.views import audit_lines

    _say(audit_lines(papers_named(paper).values()))


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
