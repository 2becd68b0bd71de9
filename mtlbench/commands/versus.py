"""What ``report --vs`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mtlbench.published.paper import PublishedTable
    from mtlbench.store import RunFolder


def table_named(words: str) -> PublishedTable:
    """The published table that ``--vs`` names."""
    from mtlbench.published import ledger

    return ledger.table_named(words)


def print_versus(store: RunFolder, published: PublishedTable) -> None:
    """Print a published table beside those of a run folder."""
    from mtlbench.commands.shared import DRAWS
    from mtlbench.published.versus import versus_lines
    from mtlbench.results.study import study_of
    from mtlbench.statistics.answers import answers_in

    predictions = answers_in(store.path / "samples")
    study = study_of(store.records().values(), expected=store.expected(), predictions=predictions, draws=DRAWS)
    for line in versus_lines(published, study):
        click.echo(line)
