"""What several commands do: print documents, find the run folder, read lists of names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mtlbench.api.executor import DevicesPerCell
    from mtlbench.api.report import Report
    from mtlbench.api.tuning import TunedMethod
    from mtlbench.forecasting.matching import Matching
    from mtlbench.planning.plan import Plan
    from mtlbench.results.documents import Written
    from mtlbench.store import RunFolder
    from mtlbench.tuning.comparison import TunedPlan


def show_written(written: Written, *, documents: bool = True) -> None:
    """Print a document that is meant for a terminal, unless told not to, and where the documents are."""
    if documents and written.on_terminal is not None:
        click.echo(written.on_terminal)
    click.echo(f"wrote {', '.join(map(str, written.paths))}", err=True)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a command that makes a table is asked for."""

    plan: Plan
    tuned: TunedPlan | None
    """With ``--tune``."""
    searches: Sequence[TunedMethod]
    """Of ``--tuning``."""
    matchings: Sequence[Matching]
    """Of ``--match-parameters``."""


def planned(options: dict[str, Any]) -> Planned:
    """The plan of a command's options. The untrained backbone is a row unless ``--no-base`` says otherwise, sizes are
    matched to a budget, and then methods are tuned.

    Raises:
        RequestError: saying what is wrong.
    """
    from mtlbench.planning.plan import plan_requests
    from mtlbench.planning.request import read_requests, with_base

    level, trials, without_base, budget = (
        options.pop(name) for name in ("tune", "tune_trials", "no_base", "match_parameters")
    )
    tune = level is not None or trials is not None
    if tune:
        from mtlbench.planning.sweeps import refuse_sweep

        refuse_sweep(options, "--tune")
    searches = [] if tune else searches_from(options)
    requests = read_requests(options)
    matchings: Sequence[Matching] = ()
    if budget is not None:
        from mtlbench.forecasting.matching import match_parameters, read_budget

        requests, matchings = match_parameters(requests, read_budget(budget))
    if not without_base:
        requests = with_base(requests)
    tuned = None
    if tune:
        from mtlbench.tuning.comparison import plan_tuned
        from mtlbench.tuning.effort import read_effort

        tuned = plan_tuned(requests, read_effort(level or "standard", trials))
    plan = tuned.plan if tuned else plan_requests(requests)
    check_tuned(plan, searches)
    return Planned(plan=plan, tuned=tuned, searches=searches, matchings=matchings)


def searches_from(options: dict[str, Any]) -> list[TunedMethod]:
    """The searches that ``--tuning`` names, which becomes the id of their study in ``options``.

    Raises:
        RequestError: a file holds no search, or they are of several studies.
    """
    from mtlbench.api.tuning import STUDY
    from mtlbench.errors import RequestError, StoreError
    from mtlbench.store.studies import read_search

    given = options.get("tuning")
    if given is None:
        return []
    try:
        searches = [read_search(Path(name.strip())) for name in given.split(",") if name.strip()]
    except StoreError as error:
        raise RequestError(f"--tuning: {error}") from error
    if len({search.study for search in searches}) != 1:
        raise RequestError(f"--tuning {given!r}: name the files of one study, whose methods had equal effort.")
    options["tuning"] = STUDY + searches[0].study
    return searches


def check_tuned(plan: Plan, searches: Sequence[TunedMethod]) -> None:
    """Refuse a method whose settings none of the searches found.

    Raises:
        RequestError: naming the settings that the search of the method found.
    """
    from mtlbench.errors import RequestError

    found = [(search.method, dict(search.settings)) for search in searches if search.winner]
    for cell in plan.cells if searches else ():
        if cell.protocol.tuning != "none" and (cell.method, dict(cell.settings)) not in found:
            known = "; ".join(f"{name}: {settings}" for name, settings in found)
            raise RequestError(f"--tuning: {cell.variant} has not the settings of a search. Found were {known}.")


def limits_from(options: dict[str, Any]) -> dict[str, Any]:
    """Take :data:`mtlbench.commands.options.LIMITS` out of a command's options, as the runner takes them."""
    given = {name: value for name in ("silence_s", "cell_timeout_s") if (value := options.pop(name)) is not None}
    return {"devices": devices_from(options), "threads": options.pop("threads"), **given}


def devices_from(options: dict[str, Any]) -> DevicesPerCell:
    """Take :data:`mtlbench.commands.options.DEVICES` out of a command's options."""
    from mtlbench.planning.request import read_devices

    workers = options.pop("workers_per_device")
    return read_devices(options.pop("devices_per_cell") or "1", shard=options.pop("shard"), workers=workers)


def reports_named(formats: str | None) -> list[Report]:
    """The reports that ``--as`` names, loaded."""
    from mtlbench.errors import RequestError
    from mtlbench.plugins import load_report

    if formats is None:
        return []
    names = [name.strip() for name in formats.split(",") if name.strip()]
    if not names:
        raise RequestError("--as is empty.")
    return [load_report(name) for name in names]


DRAWS = 1000
"""Resamples of the examples behind tests and intervals, where a command does not say."""


def names_in(option: str, text: str | None) -> tuple[str, ...]:
    """The names in an option's text; commas in brackets, as in ``lora[rank=4,alpha=8]``, belong to a name."""
    from mtlbench.errors import RequestError
    from mtlbench.planning.presets import BETWEEN

    if text is None:
        return ()
    names = tuple(name.strip() for name in BETWEEN.split(text) if name.strip())
    if not names:
        raise RequestError(f"--{option} is empty.")
    return names


def run_folder(path: Path | None) -> RunFolder:
    """The run folder at ``path``, or the newest one under ``runs/``."""
    from mtlbench.errors import RequestError
    from mtlbench.store import RunFolder, newest

    chosen = path or newest(Path("runs"))
    if chosen is None:
        raise RequestError(
            "There is no run folder under runs/. Name one, or start with: "
            "mtlbench run --methods peml,mtl_lora --tasks glue"
        )
    if not (chosen / "requests").is_dir():
        raise RequestError(
            f"{str(chosen)!r} is no run folder: it has no requests/. Name the folder that `mtlbench run` printed."
        )
    return RunFolder(chosen)
