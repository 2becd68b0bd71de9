"""Compare: two runs or two variants, as a regression gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlbench.commands.options import JSON, with_options

if TYPE_CHECKING:
    from mtlbench.results.regression import Change
    from mtlbench.store import RunFolder


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@with_options(JSON)
def compare(before: str, after: str, as_json: bool) -> None:
    """Print what changed from A to B, task by task, and exit with 1 when something dropped significantly.

    A and B are run folders, whose variants are compared name by name, or a folder and a variant: runs/a:lora
    'runs/a:lora[rank=4]'. Where a folder holds a variant under several protocols, name one by the start of its hash:
    runs/a:lora@3f2a. Differences are paired over seeds and examples; tasks are corrected after Holm.
    """
    from mtlbench.results.data.as_json import comparison_json, json_text
    from mtlbench.results.regression import changes, pairs_of
    from mtlbench.text import aligned

    dropped, compared = False, []
    for one, other in pairs_of(_named(before), _named(after)):
        changed = changes(one, other)
        dropped |= any(change.dropped for change in changed)
        if as_json:
            compared.append(comparison_json(one, other, changed))
            continue
        click.echo(f"{one.name} -> {other.name}")
        for line in aligned([["task", "A", "B", "B - A [95 %]", "p", "verdict"], *map(_cells, changed)]):
            click.echo(f"  {line}")
    if as_json:
        click.echo(json_text("compare", {"dropped": dropped, "pairs": compared}))
    sys.exit(1 if dropped else 0)


def _cells(change: Change) -> list[str]:
    ours = f"{change.after - change.before:+.2f}" if change.interval is None else str(change.interval)
    p = "-" if change.p is None else f"{change.p:.3f}"
    return [change.task, f"{change.before:.2f}", f"{change.after:.2f}", ours, p, change.verdict]


def _named(text: str) -> tuple[RunFolder, str | None]:
    """A folder, or a folder and a variant after the last colon that leaves a folder."""
    from mtlbench.commands.shared import run_folder

    first, colon, variant = text.partition(":") if Path(text.partition(":")[0]).is_dir() else text.rpartition(":")
    if Path(text).is_dir() or not colon:
        return run_folder(Path(text)), None
    return run_folder(Path(first)), variant
