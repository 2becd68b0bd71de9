"""Run: train and evaluate. The Python interface calls :func:`run_request` too."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlbench.commands.options import LIMITS, PROTOCOL, REQUEST, TRACK, WORKERS, with_options
from mtlbench.commands.shared import (
    DRAWS,
    limits_from,
    planned,
    reports_named,
    show_written,
)
from mtlbench.planning.complete import names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtlbench.api.cell import Cell
    from mtlbench.api.record import Record
    from mtlbench.api.report import Report
    from mtlbench.store import RunFolder


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A request that was carried out."""

    folder: RunFolder
    code: int
    """Exit code of the command: 0, 1 where cells failed or are missing, 130 after an interrupt."""
    reports: tuple[Report, ...]
    """Reports to end in."""


@click.command()
@with_options(REQUEST)
@with_options(WORKERS)
@with_options(LIMITS)
@with_options(PROTOCOL)
@click.option(
    "--as",
    "formats",
    metavar="NAMES",
    shell_complete=names("reports"),
    help="Reports to render at the end, such as markdown,charts.",
)
@click.option(
    "--again",
    metavar="NAMES",
    shell_complete=names("methods"),
    help="Run these methods (or cell keys) again, though they have records.",
)
@with_options(TRACK)
def run(**options: Any) -> None:
    """Train and evaluate every method; the same command again does only what is missing. Ends in the table.

    An edited method is run again by itself. --again forces it: what was there stays as <key>.again-<n>.
    """
    from mtlbench.executors.runner import INTERRUPTED
    from mtlbench.results.data.score_table import study_lines
    from mtlbench.results.documents import write_reports

    ran = run_request(options, tell=partial(click.echo, err=True))
    path = ran.folder.path
    click.echo(f"Records are in {path}. Show the table with: mtlbench report {shlex.quote(str(path))}", err=True)
    if ran.code != INTERRUPTED:
        study = write_reports(ran.folder, ran.reports, draws=DRAWS, tell=show_written)
        for line in () if any(report.on_terminal for report in ran.reports) else study_lines(study):
            click.echo(line)
    sys.exit(ran.code)


def run_request(options: Mapping[str, Any], *, tell: Callable[[str], None], without: Collection[str] = ()) -> Ran:
    """Run what the options of ``mtlbench run`` ask for.

    Args:
        options: By the names of the command's parameters; ``None`` is an option that was not given.
        tell: Gets what the user should know, a sentence at a time: notes of the plan, and what is there already.
        without: Observers that are left out.

    Raises:
        MtlbenchError: the request cannot be carried out; nothing was created then.
    """
    from mtlbench.backbones.names import check_reachable
    from mtlbench.errors import RequestError
    from mtlbench.executors.options import executor_of
    from mtlbench.executors.runner import run as run_cells
    from mtlbench.observers.trackers import trackers_named
    from mtlbench.planning.presets import preset_reports
    from mtlbench.planning.request import cells_named, check_devices
    from mtlbench.plugins import load_observers
    from mtlbench.results.status import earlier_lines
    from mtlbench.store import RunFolder

    rest = dict(options)
    out, executor, workers, device, formats, again, track = (
        rest.pop(name) for name in ("out", "executor", "workers", "device", "formats", "again", "track")
    )
    reports = reports_named(formats or preset_reports(rest["preset"]))
    limits = limits_from(rest)
    requested = planned(rest)
    plan, tuned = requested.plan, requested.tuned
    if again is not None and tuned:
        raise RequestError("--again is for runs without --tune: take another run folder with --out for a new search.")
    forced = cells_named(plan.cells, again) if again is not None else ()
    check_devices(limits["devices"], plan.cells)
    starter = executor_of(executor)
    starter.check(device)
    starter.check_shared(device, limits["devices"])
    observers = load_observers(tell, without=without)
    for note in plan.notes:
        tell(note)
    for model in plan.models:
        check_reachable(model)
    folder = RunFolder(Path(out or plan.default_folder))
    observers |= trackers_named(track, folder.path)
    folder.preflight()
    folder.put_searches(requested.searches)
    limits |= {"device": device, "workers": workers}
    # Under the keys of now also those that an earlier version ran: their records would count otherwise.
    folder.set_aside([cell.key for each in forced for cell in (each, *folder.known_as([each]))])
    cells = folder.known_as(plan.cells)
    records = folder.records()
    for line in (*_there(records, cells), *earlier_lines(cells, records)):
        tell(line)
    if tuned:
        from mtlbench.tuning.comparison import run_tuned

        code = run_tuned(tuned, folder, starter, observers, tell=tell, **limits)
    else:
        request = folder.put_request({**plan.to_json(), **folder.models_in(plan.cells)}, cells)
        code = run_cells(folder, request, cells, starter, observers, **limits)
    return Ran(folder=folder, code=code, reports=tuple(reports))


def _there(records: Mapping[str, Record], cells: Sequence[Cell]) -> list[str]:
    """What of a request is done already; nothing where nothing is."""
    from mtlbench.text import count

    found = [records[cell.key].status for cell in cells if cell.key in records]
    done, failed = sum(status != "failed" for status in found), found.count("failed")
    again = f" {count(failed, 'failed cell')} will be tried again." if failed else ""
    if done == len(cells):
        return [f"All of the {count(done, 'cell')} had records already."]
    return [f"{done} of {count(len(cells), 'cell')} had records already.{again}"] if found else []
