"""A trained adapter of a run folder as a standard peft checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mtlbench.api.record import Record
from mtlbench.errors import RequestError, did_you_mean


def trained_record(records: Iterable[Record], *, variant: str, seed: int | None) -> Record:
    """The finished record of a method as tables show it.

    Raises:
        RequestError: there is none, or more than one.
    """
    done = [record for record in records if record.status == "ok"]
    known = sorted({record.cell.variant for record in done})
    found = [r for r in done if r.cell.variant == variant and seed in (None, r.cell.seed)]
    if variant not in known:
        raise RequestError(f"No finished cell of {variant!r} is in this folder. {did_you_mean(variant, known)}")
    if not found:
        raise RequestError(f"{variant} has no finished cell with seed {seed}. {_seeds(done, variant)}")
    if len(found) > 1 and seed is None:
        raise RequestError(f"{variant} was trained more than once: choose with --seed. {_seeds(done, variant)}")
    if len(found) > 1:
        raise RequestError(
            f"{variant} with seed {seed} was trained {len(found)} times in this folder, under other protocols, "
            "backbones or tasks. Run the one to export into a folder of its own."
        )
    return found[0]


def export_record(record: Record, adapter: Path, to: Path, *, task: str | None) -> None:
    """Write the checkpoint to ``to``, which must be new or empty.

    Raises:
        RequestError: the task is none of the cell's, or ``to`` holds something.
        PluginError: the method has no standard form.
    """
    tasks = record.cell.tasks
    if task is not None and task not in tasks:
        raise RequestError(f"{record.cell.variant} was not trained on {task!r}. {did_you_mean(task, tasks)}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RequestError(f"--to {str(to)!r} is not an empty folder. Name a new one.")
    if not adapter.is_dir():
        raise RequestError(f"{record.cell.variant} left no adapter: it trains nothing.")
    from mtlbench.engine.rebuild import rebuild

    rebuilt = rebuild(record, adapter)
    rebuilt.method.export(rebuilt.model, to, task=None if task is None else tasks.index(task))


def _seeds(records: Iterable[Record], variant: str) -> str:
    seeds = sorted({record.cell.seed for record in records if record.cell.variant == variant})
    return f"Seeds here: {', '.join(map(str, seeds))}."
