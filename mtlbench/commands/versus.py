"""What ``report --vs`` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mtlbench.published.paper import PublishedTable
    from mtlbench.store import RunFolder


def tables_named(words: str) -> tuple[PublishedTable, ...]:
    """The published table that ``--vs`` names, or its parts."""
    from mtlbench.published import ledger

    return ledger.tables_named(words)


def print_versus(store: RunFolder, published: Iterable[PublishedTable]) -> None:
    """Print published tables beside those of a run folder."""
    from mtlbench.commands.shared import DRAWS
    from mtlbench.published.versus import versus_lines
    from mtlbench.results.study import study_of
    from mtlbench.statistics.answers import answers_in

    records = store.records().values()
    study = study_of(records, expected=store.expected(), predictions=answers_in(store, records), draws=DRAWS)
    for table in published:
        for line in versus_lines(table, study):
            click.echo(line)
