"""Plan: what would run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mtlbench.commands.options import DEVICES, PROTOCOL, REQUEST, with_options
from mtlbench.commands.shared import devices_from, planned, show_notes


@click.command()
@with_options(REQUEST)
@with_options(PROTOCOL)
@click.option("--parameters", is_flag=True, help="Count what each method trains; loads torch, but no weights.")
@click.option(
    "--forecast", is_flag=True, help="Estimate memory, time and disk of what would run; loads torch and reads the rows."
)
@with_options(DEVICES)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Forecast for this device.")
def plan(out: Path | None, parameters: bool, forecast: bool, device: str, **options: Any) -> None:
    """Show what would run and what is there already; creates nothing.

    For a backbone in a folder, it also tells which methods do not fit it, which loads torch but no weights.
    """
    from mtlbench.backbones.names import is_embedded
    from mtlbench.planning.request import check_devices
    from mtlbench.planning.sweeps import sweep_lines
    from mtlbench.results.status import earlier_lines, plan_lines
    from mtlbench.store import RunFolder

    devices = devices_from(options)
    requested = planned(options)
    made, tuned = requested.plan, requested.tuned
    check_devices(devices, made.cells)
    matched = [line for matching in requested.matchings for line in matching.lines()]
    show_notes(made, but=matched)
    path = out or made.default_folder
    records = RunFolder(path).records() if path.is_dir() else {}
    cells = RunFolder(path).known_as(made.cells)
    for line in [*plan_lines(cells, records, folder=path), *earlier_lines(cells, records)]:
        click.echo(line)
    for line in (*matched, *(tuned.lines() if tuned else sweep_lines(made.sweeps, cells=len(cells)))):
        click.echo(line)
    local = [cell for cell in made.cells if not is_embedded(cell.model) and Path(cell.model).is_dir()]
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
