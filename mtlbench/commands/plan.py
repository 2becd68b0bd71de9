"""Plan: what would run. The Python interface calls :func:`plan_request` too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlbench.commands.options import DEVICES, JSON, PROTOCOL, REQUEST, with_options
from mtlbench.commands.shared import Planned, devices_from, planned

if TYPE_CHECKING:
    from mtlbench.api.cell import Cell
    from mtlbench.api.executor import DevicesPerCell
    from mtlbench.api.record import Record


@dataclass(frozen=True, kw_only=True)
class PlanOfFolder:
    """A request that was checked and laid out, and what its folder holds of it."""

    requested: Planned
    devices: DevicesPerCell
    folder: Path
    """Where it would run."""
    cells: tuple[Cell, ...]
    """The cells as the folder names them."""
    records: Mapping[str, Record]
    """What is in the folder already, by key."""

    def to_json(self) -> dict[str, Any]:
        """What ``mtlbench plan --json`` prints."""
        from mtlbench.results.data.as_json import cell_states, states_counted

        states = cell_states(self.cells, self.records)
        return {
            "folder": str(self.folder),
            "counts": states_counted(states),
            "notes": list(self.requested.plan.notes),
            "tuning": self.requested.tuned.lines() if self.requested.tuned else [],
            "cells": states,
        }


@click.command()
@with_options(REQUEST)
@with_options(PROTOCOL)
@click.option("--parameters", is_flag=True, help="Count what each method trains; loads torch, but no weights.")
@click.option(
    "--forecast", is_flag=True, help="Estimate memory, time and disk of what would run; loads torch and reads the rows."
)
@with_options(DEVICES)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Forecast for this device.")
@with_options(JSON)
def plan(parameters: bool, forecast: bool, device: str, as_json: bool, **options: Any) -> None:
    """Show what would run and what is there already; creates nothing.

    For a backbone in a folder, it also tells which methods do not fit it, which loads torch but no weights.
    """
    from mtlbench.backbones.names import is_embedded
    from mtlbench.errors import RequestError
    from mtlbench.planning.sweeps import sweep_lines
    from mtlbench.results.status import earlier_lines, plan_lines
    from mtlbench.store import RunFolder

    if as_json and (parameters or forecast):
        raise RequestError("--json prints the cells. Leave out --parameters and --forecast, or --json.")
    laid_out = plan_request(options)
    made, tuned, devices = laid_out.requested.plan, laid_out.requested.tuned, laid_out.devices
    path, records, cells = laid_out.folder, laid_out.records, laid_out.cells
    if as_json:
        from mtlbench.results.data.as_json import json_text

        click.echo(json_text("plan", laid_out.to_json()))
        return
    matched = [line for matching in laid_out.requested.matchings for line in matching.lines()]
    for note in made.notes:
        if note not in matched:  # they stand with the result
            click.echo(note, err=True)
    for line in [*plan_lines(cells, records, folder=path), *earlier_lines(cells, records)]:
        click.echo(line)
    for line in (*matched, *(tuned.lines() if tuned else sweep_lines(made.sweeps, cells=len(cells)))):
        click.echo(line)
    in_folders = {model for model in made.models if not is_embedded(model) and Path(model).is_dir()}
    local = [cell for cell in made.cells if cell.model in in_folders]
    if local and not (parameters or forecast):
        from mtlbench.forecasting.memory import refusal_lines

        for line in refusal_lines(local):
            click.echo(line)
    if parameters:
        from mtlbench.forecasting.memory import parameter_lines

        for line in parameter_lines(made.cells):
            click.echo(line)
    if forecast:
        from mtlbench.executors.devices import Nvidia
        from mtlbench.forecasting.forecast import check_fits, forecast_lines, forecasts, target_of

        done = {key for key, record in records.items() if record.status != "failed"}
        wanted = tuned.expected(path) if tuned else made.cells
        known_as = RunFolder(path).known_as(wanted)
        todo = [cell for cell, known in zip(wanted, known_as, strict=True) if known.key not in done]
        target = target_of(device, Nvidia().devices(), todo=todo, devices=devices)
        expected, refused = forecasts(todo, records, target=target, data=made.request.data_name)
        for line in forecast_lines(expected, refused, target=target, folder=path):
            click.echo(line)
        check_fits(expected, target=target, folder=path)


def plan_request(options: Mapping[str, Any]) -> PlanOfFolder:
    """Check and lay out what the options of ``mtlbench plan`` ask for; nothing is created.

    Args:
        options: By the names of the command's parameters, without those of the forecast; ``None`` is not given.

    Raises:
        RequestError: the request cannot be carried out.
    """
    from mtlbench.planning.request import check_devices
    from mtlbench.store import RunFolder

    rest = dict(options)
    out = rest.pop("out")
    devices = devices_from(rest)
    requested = planned(rest)
    made = requested.plan
    check_devices(devices, made.cells)
    path = Path(out or made.default_folder)
    return PlanOfFolder(
        requested=requested,
        devices=devices,
        folder=path,
        cells=tuple(RunFolder(path).known_as(made.cells)),
        records=RunFolder(path).records() if path.is_dir() else {},
    )
