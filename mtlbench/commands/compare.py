"""Compare: two runs or two variants, as a regression gate."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mtlbench.api.record import Record
    from mtlbench.results.regression import Change, RecordSet
    from mtlbench.store import RunFolder


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
def compare(before: str, after: str) -> None:
    """Print what changed from A to B, task by task, and exit with 1 when something dropped significantly.

    A and B are run folders, whose variants are compared name by name, or a folder and a variant: runs/a:lora
    'runs/a:lora[rank=4]'. Differences are paired over seeds and examples; tasks are corrected after Holm.
    """
    from mtlbench.results.regression import changes
    from mtlbench.text import aligned

    dropped = False
    for one, other in _pairs(before, after):
        click.echo(f"{one.name} -> {other.name}")
        found = changes(one, other)
        for line in aligned([["task", "A", "B", "B - A [95 %]", "p", "verdict"], *map(_cells, found)]):
            click.echo(f"  {line}")
        dropped |= any(change.dropped for change in found)
    sys.exit(1 if dropped else 0)


def _cells(change: Change) -> list[str]:
    ours = f"{change.after - change.before:+.2f}" if change.interval is None else str(change.interval)
    p = "-" if change.p is None else f"{change.p:.3f}"
    return [change.task, f"{change.before:.2f}", f"{change.after:.2f}", ours, p, change.verdict]


def _pairs(before: str, after: str) -> Iterator[tuple[RecordSet, RecordSet]]:
    from mtlbench.errors import RequestError

    (folder_a, variant_a), (folder_b, variant_b) = _words(before), _words(after)
    a, b = _done(folder_a), _done(folder_b)
    if (variant_a is None) != (variant_b is None):
        raise RequestError("Name a variant on both sides, or on none: mtlbench compare runs/a:lora runs/b:lora")
    if variant_a is not None and variant_b is not None:
        yield _side(folder_a, a, variant_a), _side(folder_b, b, variant_b)
        return
    shared = [
        variant for variant in dict.fromkeys(r.cell.variant for r in a) if any(r.cell.variant == variant for r in b)
    ]
    if not shared:
        raise RequestError(f"{before} and {after} have no finished variant in common. Name one on each side.")
    for variant in shared:
        yield _side(folder_a, a, variant), _side(folder_b, b, variant)


def _words(words: str) -> tuple[RunFolder, str | None]:
    """A folder, or a folder and a variant after the last colon that leaves a folder."""
    from mtlbench.commands.shared import run_folder

    first, colon, variant = words.partition(":") if Path(words.partition(":")[0]).is_dir() else words.rpartition(":")
    if Path(words).is_dir() or not colon:
        return run_folder(Path(words)), None
    return run_folder(Path(first)), variant


def _done(folder: RunFolder) -> list[Record]:
    return [record for record in folder.records().values() if record.status == "ok"]


def _side(folder: RunFolder, records: Sequence[Record], variant: str) -> RecordSet:
    from mtlbench.errors import RequestError, did_you_mean
    from mtlbench.results.regression import RecordSet
    from mtlbench.statistics.answers import answers_in

    known = {record.cell.variant for record in records}
    if variant not in known:
        raise RequestError(f"No finished cell of {variant!r} is in {folder.path}. {did_you_mean(variant, known)}")
    by_seed: dict[int, Record] = {}
    for record in records:
        if record.cell.variant != variant:
            continue
        if record.cell.seed in by_seed:
            raise RequestError(
                f"{folder.path} holds {variant} with seed {record.cell.seed} more than once, under other protocols, "
                "tasks, backbones or versions. Compare folders that hold one of each."
            )
        by_seed[record.cell.seed] = record
    predictions = answers_in(folder, by_seed.values())
    return RecordSet(name=f"{folder.path}:{variant}", records=by_seed, predictions=predictions)
