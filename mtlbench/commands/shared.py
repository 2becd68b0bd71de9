"""What several commands do: words to a plan, a run folder, rendered reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mtlbench.api.executor import DevicesPerCell
    from mtlbench.api.report import Report
    from mtlbench.planning.plan import Plan
    from mtlbench.store import RunFolder


def plan_from(words: dict[str, Any]) -> Plan:
    """The plan of a command's words, on top of those of its preset."""
    from mtlbench.planning.plan import join_plans
    from mtlbench.planning.presets import Preset, open_preset

    name = words.pop("preset")
    given = {k: v for k, v in words.items() if v is not None}
    opened = open_preset(name, given) if name else Preset(parts=(given,))
    return join_plans([_planned(part) for part in opened.parts], notes=opened.notes)


def _planned(words: Mapping[str, Any]) -> Plan:
    from mtlbench.errors import RequestError
    from mtlbench.planning.plan import Request, make_plan

    merged = dict(words)
    for needed in ("methods", "tasks"):
        if needed not in merged:
            raise RequestError(f"--{needed} is missing. Example: mtlbench run --methods peml,mtl_lora --tasks glue")
    request = {k: merged.pop(k) for k in ("methods", "tasks", "model", "data") if k in merged}
    seeds = _seeds(str(merged.pop("seeds", "0")))
    return make_plan(Request(**request, seeds=seeds, protocol=merged))


def tell_notes(plan: Plan) -> None:
    """Say the notes of a plan, away from the result."""
    for note in plan.notes:
        click.echo(note, err=True)


def _seeds(words: str) -> tuple[int, ...]:
    from mtlbench.errors import RequestError

    try:
        seeds = tuple(int(word) for word in words.split(","))
    except ValueError:
        raise RequestError(
            f"--seeds {words!r} cannot be read. Write whole numbers with commas, such as 0,1,2."
        ) from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise RequestError(f"--seeds {words!r}: seeds must be different and not negative.")
    return seeds


def limits_from(words: dict[str, Any]) -> dict[str, Any]:
    """Take the options of :data:`mtlbench.commands.options.LIMITS` out of a command's, as the runner does."""
    given = {name: value for name in ("silence_s", "cell_timeout_s") if (value := words.pop(name)) is not None}
    return {"devices": devices_from(words), **given}


def devices_from(words: dict[str, Any]) -> DevicesPerCell:
    """Take the words of :data:`mtlbench.commands.options.DEVICES` out of a command's."""
    from mtlbench.api.executor import DevicesPerCell

    devices = DevicesPerCell.read(words.pop("devices_per_cell") or "1")
    return dataclasses.replace(devices, shard=words.pop("shard"))


def reports_named(formats: str | None) -> list[Report]:
    """The reports that ``--as`` names, loaded."""
    from mtlbench.plugins import load_report

    return [] if formats is None else [load_report(name) for name in _names(formats, "--as")]


DRAWS = 1000
"""Resamples of the examples behind tests and intervals, where a command does not say."""


def render_reports(
    store: RunFolder, reports: list[Report], target: Path, *, reference: str | None = None, draws: int = DRAWS
) -> None:
    """Write the documents of a run folder to ``target``; those meant for a terminal are printed too.

    ``reference`` and ``draws`` are those of :func:`mtlbench.results.study.study_of`.
    """
    from mtlbench.errors import RequestError
    from mtlbench.files.sealed import overwrite
    from mtlbench.results.study import study_of
    from mtlbench.statistics.answers import answers_in

    if target.is_symlink() and target.parent == store.path:
        raise RequestError(f"{str(target)!r} is a symbolic link. Say where documents go with --to.")
    records = store.records()
    predictions = answers_in(store, records.values())
    study = study_of(
        records.values(),
        expected=store.expected(),
        steps=store.steps,
        predictions=predictions,
        reference=reference,
        draws=draws,
        notes=partial(store.problems, records),
    )
    for renderer in reports:
        documents = renderer.render(study)
        target.mkdir(parents=True, exist_ok=True)
        for name, content in documents.items():
            overwrite(target / name, content if isinstance(content, bytes) else content.encode(), durable=False)
        if renderer.on_terminal:
            content = next(iter(documents.values()))
            click.echo(content.decode() if isinstance(content, bytes) else content)
        click.echo(f"wrote {', '.join(str(target / name) for name in documents)}", err=True)


def _names(words: str, option: str) -> list[str]:
    from mtlbench.errors import RequestError

    names = [w.strip() for w in words.split(",") if w.strip()]
    if not names:
        raise RequestError(f"{option} is empty.")
    return names


def run_folder(path: Path | None) -> RunFolder:
    """The run folder at ``path``, or the newest one under ``runs/``."""
    from mtlbench.errors import RequestError
    from mtlbench.store import RunFolder, newest

    found = path or newest(Path("runs"))
    if found is None:
        raise RequestError(
            "There is no run folder under runs/. Name one, or start with: "
            "mtlbench run --methods peml,mtl_lora --tasks glue"
        )
    if not (found / "requests").is_dir():
        raise RequestError(
            f"{str(found)!r} is no run folder: it has no requests/. Name the folder that `mtlbench run` printed."
        )
    return RunFolder(found)
