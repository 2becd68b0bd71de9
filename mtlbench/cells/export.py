"""A trained adapter of a run folder as a checkpoint with a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from mtlbench.api.record import Record
from mtlbench.errors import PluginError, RequestError, did_you_mean
from mtlbench.results.model_card import write_card

FORMS = ("peft", "mtlbench")
"""``peft`` is what plain peft loads, ``mtlbench`` what this package saved, with the record that says how to load it."""
_PRIVATE = ("host", "pid")


def trained_record(records: Iterable[Record], *, variant: str, seed: int | None) -> Record:
    """The finished record of a method as tables show it.

    Raises:
        RequestError: there is none, or more than one.
    """
    done = [record for record in records if record.status == "ok"]
    known = sorted({record.cell.variant for record in done})
    matching = [r for r in done if r.cell.variant == variant and seed in (None, r.cell.seed)]
    if variant not in known:
        raise RequestError(f"No finished cell of {variant!r} is in this folder. {did_you_mean(variant, known)}")
    if not matching:
        raise RequestError(f"{variant} has no finished cell with seed {seed}. {_seeds(done, variant)}")
    if len(matching) > 1 and seed is None:
        raise RequestError(f"{variant} was trained more than once: choose with --seed. {_seeds(done, variant)}")
    if len(matching) > 1:
        raise RequestError(
            f"{variant} with seed {seed} was trained {len(matching)} times in this folder, under other protocols, "
            "backbones or tasks. Run the one to export into a folder of its own."
        )
    return matching[0]


def siblings_of(record: Record, records: Iterable[Record]) -> list[Record]:
    """The finished records that differ from ``record`` in nothing but the seed, itself included, by seed."""

    def identity(of: Record) -> dict[str, object]:
        return {**of.cell.to_json(), "seed": None}

    alike = [r for r in records if r.status == "ok" and identity(r) == identity(record)]
    return sorted(alike, key=lambda r: r.cell.seed)


def export_record(
    record: Record, adapter: Path, to: Path, *, task: str | None, siblings: Sequence[Record], form: str = "peft"
) -> None:
    """Write the checkpoint and its card to ``to``, which must be new or empty.

    Args:
        siblings: Records of the other seeds, for the card.
        form: One of :data:`FORMS`.

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
    if form == "peft":
        _as_peft(record, adapter, to, task=task)
    else:
        _as_saved(record, adapter, to)
    write_card(record, siblings, to, task=task)


def _as_peft(record: Record, adapter: Path, to: Path, *, task: str | None) -> None:
    from mtlbench.cells.rebuild import rebuild

    rebuilt = rebuild(record, adapter)
    try:
        rebuilt.method.export(rebuilt.model, to, task=None if task is None else record.cell.tasks.index(task))
    except PluginError as error:
        raise PluginError(f"{error} With --form mtlbench it is written as mtlbench itself loads it.") from error


def _as_saved(record: Record, adapter: Path, to: Path) -> None:
    """The adapter as trained and the record that rebuilds it, without the names of this machine."""
    shutil.copytree(adapter, to, dirs_exist_ok=True)
    body = record.to_json()
    body["provenance"] = {name: value for name, value in body["provenance"].items() if name not in _PRIVATE}
    (to / "record.json").write_text(json.dumps(body, indent=1))


def _seeds(records: Iterable[Record], variant: str) -> str:
    seeds = sorted({record.cell.seed for record in records if record.cell.variant == variant})
    return f"Seeds here: {', '.join(map(str, seeds))}."
