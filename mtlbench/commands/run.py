"""Run: train and evaluate."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from mtlbench.commands.options import LIMITS, PROTOCOL, REQUEST, TRACK, WORKERS, with_options
from mtlbench.commands.shared import (
    DRAWS,
    limits_from,
    planned,
    reports_named,
    show_notes,
    show_written,
)


@click.command()
@with_options(REQUEST)
@with_options(WORKERS)
@with_options(LIMITS)
@with_options(PROTOCOL)
@click.option("--as", "formats", metavar="NAMES", help="Reports to render at the end, such as markdown,charts.")
@click.option("--again", metavar="NAMES", help="Run these methods (or cell keys) again, though they have records.")
@with_options(TRACK)
def run(
    out: Path | None,
    executor: str,
    workers: int,
    device: str,
    formats: str | None,
    again: str | None,
    track: str | None,
    **options: Any,
) -> None:
    """Train and evaluate every method; the same command again does only what is missing.

    An edited method is run again by itself. --again forces it: what was there stays as <key>.again-<n>.
    """
    from mtlbench.backbones.names import check_reachable
    from mtlbench.errors import RequestError
    from mtlbench.executors.options import executor_of
    from mtlbench.executors.runner import run as run_cells
    from mtlbench.observers.trackers import trackers_named
    from mtlbench.planning.presets import preset_reports
    from mtlbench.planning.request import cells_named, check_devices
    from mtlbench.plugins import load_observers
    from mtlbench.results.documents import write_reports
    from mtlbench.results.status import earlier_lines
    from mtlbench.store import RunFolder

    reports = reports_named(formats or preset_reports(options["preset"]))
    limits = limits_from(options)
    requested = planned(options)
    plan, tuned = requested.plan, requested.tuned
    if again is not None and tuned:
        raise RequestError("--again is for runs without --tune: take another run folder with --out for a new search.")
    forced = cells_named(plan.cells, again) if again is not None else ()
    check_devices(limits["devices"], plan.cells)
    starter = executor_of(executor)
    starter.check(device)
    starter.check_shared(device, limits["devices"])
    observers = load_observers(partial(click.echo, err=True))
    show_notes(plan)
    for model in plan.models:
        check_reachable(model)
    folder = RunFolder(out or plan.default_folder)
    observers |= trackers_named(track, folder.path)
    folder.preflight()
    folder.put_searches(requested.searches)
    limits |= {"device": device, "workers": workers}
    if tuned:
        from mtlbench.tuning.comparison import run_tuned

        code = run_tuned(tuned, folder, starter, observers, tell=partial(click.echo, err=True), **limits)
    else:
        # Under the keys of now also those that an earlier version ran: their records would count otherwise.
        folder.set_aside([cell.key for each in forced for cell in (each, *folder.known_as([each]))])
        cells = folder.known_as(plan.cells)
        for line in earlier_lines(cells, folder.records()):
            click.echo(line, err=True)
        request = folder.put_request({**plan.to_json(), **folder.models_in(plan.cells)}, cells)
        code = run_cells(folder, request, cells, starter, observers, **limits)
    click.echo(f"Records are in {folder.path}. Show the table with: mtlbench report {folder.path}", err=True)
    if reports and code != 130:
        write_reports(folder, reports, draws=DRAWS, tell=show_written)
    sys.exit(code)
