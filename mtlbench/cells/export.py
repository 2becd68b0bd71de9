"""A trained adapter of a run folder as a checkpoint with a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from mtlbench.api.record import Record
from mtlbench.errors import PluginError, RequestError, did_you_mean
from mtlbench.files.temporary import usual_permissions
from mtlbench.results.choosing import named_records, told_apart
from mtlbench.results.model_card import write_card
from mtlbench.results.shareable import shareable, shared_names
from mtlbench.text import local_name
from mtlbench.training.checkpoints.state import replace_extra, saved_extra

FORMS = ("peft", "mtlbench")
"""``peft`` is what plain peft loads, ``mtlbench`` what this package saved, with the record that says how to load it."""
_PRIVATE = ("host", "pid")


def trained_record(
    records: Iterable[Record],
    *,
    variant: str,
    seed: int | None,
    protocol: str | None = None,
    key: str | None = None,
) -> Record:
    """The finished record of a method as tables show it.

    Args:
        protocol: Name of its protocol, or start of the hash, where there are several.
        key: Start of the cell's key.

    Raises:
        RequestError: there is none, or more than one.
    """
    done = [record for record in records if record.status == "ok"]
    known = sorted({record.cell.variant for record in done})
    matching = [r for r in done if r.cell.variant == variant and seed in (None, r.cell.seed)]
    matching = named_records(matching, protocol=protocol, key=key)
    if variant not in known:
        raise RequestError(f"No finished cell of {variant!r} is in this folder. {did_you_mean(variant, known)}")
    if not matching:
        raise RequestError(f"{variant} has no finished cell with seed {seed}. {_seeds(done, variant)}")
    if len(matching) > 1 and len({record.cell.seed for record in matching}) == len(matching):
        raise RequestError(f"{variant} was trained more than once: choose with --seed. {_seeds(done, variant)}")
    if len(matching) > 1:
        raise RequestError(
            f"{variant} was trained {len(matching)} times in this folder, under other protocols, backbones or tasks: "
            f"{told_apart(matching)}. Choose with --protocol and --seed, or with --key."
        )
    return matching[0]


def siblings_of(record: Record, records: Iterable[Record]) -> list[Record]:
    """The finished records that differ from ``record`` in nothing but the seed, itself included, by seed."""

    def identity(of: Record) -> dict[str, object]:
        return {**of.cell.to_json(), "seed": None}

    alike = [r for r in records if r.status == "ok" and identity(r) == identity(record)]
    return sorted(alike, key=lambda r: r.cell.seed)


def export_record(
    record: Record,
    adapter: Path,
    to: Path,
    *,
    task: str | None,
    siblings: Sequence[Record],
    model: str | None = None,
    form: str = "peft",
) -> None:
    """Write the checkpoint and its card to ``to``, which must be new or empty; no directory of this machine is in them.

    Args:
        model: Where the backbone is, if not where the record says.
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
        _as_peft(record, adapter, to, task=task, model=model)
    else:
        _as_saved(record, adapter, to)
    write_card(record, siblings, to, task=task)
    usual_permissions(to)


def _as_peft(record: Record, adapter: Path, to: Path, *, task: str | None, model: str | None) -> None:
    from mtlbench.cells.rebuild import rebuild

    rebuilt = rebuild(record, adapter, model=model)
    try:
        rebuilt.method.export(rebuilt.model, to, task=None if task is None else record.cell.tasks.index(task))
    except PluginError as error:
        raise PluginError(f"{error} With --form mtlbench it is written as mtlbench itself loads it.") from error
    for path in to.rglob("*.json"):
        _without_places(path, to, name=local_name(record.cell.model))


def _without_places(path: Path, to: Path, *, name: str) -> None:
    """Write the name of the backbone into a config, and paths relative to the export for the files in it."""
    body = json.loads(path.read_text(encoding="utf-8"))
    changed = False
    for field in ("base_model_name_or_path", "_name_or_path", "name_or_path"):
        value = body.get(field) if isinstance(body, dict) else None
        if isinstance(value, str) and Path(value).exists():
            inside = Path(value).resolve().is_relative_to(to.resolve())
            body[field] = Path(value).resolve().relative_to(to.resolve()).as_posix() if inside else name
            changed = True
    if changed:
        path.write_text(json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False), encoding="utf-8")


def _as_saved(record: Record, adapter: Path, to: Path) -> None:
    """The adapter as trained and the record that rebuilds it, without the names of this machine."""
    shutil.copytree(adapter, to, dirs_exist_ok=True)
    shared = shareable(record, shared_names([record.cell]))
    extra = saved_extra(to)
    replace_extra(to, {**extra, "cell": shared.cell.to_json()})
    body = shared.to_json()
    body["provenance"] = {name: value for name, value in body["provenance"].items() if name not in _PRIVATE}
    (to / "record.json").write_text(json.dumps(body, indent=1))


def _seeds(records: Iterable[Record], variant: str) -> str:
    seeds = sorted({record.cell.seed for record in records if record.cell.variant == variant})
    return f"Seeds here: {', '.join(map(str, seeds))}."
