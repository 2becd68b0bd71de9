"""TensorBoard, Weights & Biases and MLflow through accelerate's trackers; each is an observer, enabled by ``--track``.

They run in the parent of a run and read the step logs: no training step waits for them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.api.hooks import hookimpl
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.text import local_name

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from mtlbench.api.cell import Cell
    from mtlbench.api.record import Record

Make = Callable[[Path, str, Mapping[str, Any]], "GeneralTracker"]
"""Starts a tracker for a run folder, a cell name and the cell's settings."""


def trackers_named(track: str | None, folder: Path) -> dict[str, Tracking]:
    """The observers that ``--track`` names, for a run in ``folder``.

    Raises:
        RequestError: a name is unknown, or its package is not installed.
    """
    names = [name.strip() for name in track.split(",")] if track else []
    for name in names:
        if name not in KINDS:
            raise RequestError(f"Unknown tracker {name!r}. {did_you_mean(name, KINDS)}")
        if not any(importlib.util.find_spec(package) for package in KINDS[name].packages):
            raise RequestError(f"--track {name} needs its package: pip install 'mtlbench[{name}]'")
    return {f"tracker {name}": Tracking(KINDS[name], folder) for name in names}


class Tracking:
    """One tracker for the cells of a run; each cell is a run of the tracker."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self._kind = kind
        self._folder = folder
        self._cells: dict[str, _Tracked] = {}

    @hookimpl
    def mtlbench_step_logged(self, cell: Cell, line: Mapping[str, Any]) -> None:
        """Open a tracker run when an attempt starts; log the losses of a step."""
        if "started" in line:
            self._end(cell.key)
            self._cells[cell.key] = _Tracked(self._kind, self._folder, cell)
        if "step" in line and cell.key in self._cells:
            losses = {f"loss/{task}": loss for task, loss in line["tasks"].items()}
            self._cells[cell.key].log({"loss": line["loss"], **losses}, step=int(line["step"]))

    @hookimpl
    def mtlbench_cell_finished(self, record: Record) -> None:
        """Log scores and costs and close the tracker run; cells that were already done are not logged again."""
        tracked = self._cells.get(record.key)
        if tracked is None:
            return
        values = {f"score/{task}": score.score for task, score in record.scores.items()}
        values |= {"score/average": record.average} if record.average is not None else {}
        costs = asdict(record.costs) if record.costs else {}
        values |= {f"cost/{name}": value for name, value in costs.items() if isinstance(value, int | float)}
        tracked.log({**values, "ok": float(record.status == "ok")}, step=record.costs.steps if record.costs else 0)
        self._end(record.key)

    @hookimpl
    def mtlbench_run_finished(self) -> None:
        """Close open tracker runs."""
        for key in list(self._cells):
            self._end(key)

    def _end(self, key: str) -> None:
        tracked = self._cells.pop(key, None)
        if tracked is not None:
            tracked.close()


class _Tracked:
    """One cell. For trackers that allow one open run per process, everything is written when the cell ends."""

    def __init__(self, kind: Kind, folder: Path, cell: Cell) -> None:
        from accelerate import PartialState

        PartialState(cpu=True)  # required by accelerate's loggers, which the trackers use
        self._open = partial(kind.make, folder, _label(cell), _settings(cell))
        self._tracker: Any = self._open() if kind.many else None
        self._buffered: list[tuple[dict[str, float], int]] = []

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        if self._tracker is None:
            self._buffered.append((dict(values), step))
            return
        self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        tracker: Any = self._tracker or self._open()
        for values, step in self._buffered:
            tracker.log(values, step=step)
        tracker.finish()


def _tensorboard(folder: Path, label: str, settings: Mapping[str, Any]) -> GeneralTracker:
    from accelerate.tracking import TensorBoardTracker

    tracker: Any = TensorBoardTracker(label, folder / "tracking" / "tensorboard")
    tracker.start()
    tracker.store_init_configuration(dict(settings))
    return tracker


def _wandb(folder: Path, label: str, settings: Mapping[str, Any]) -> GeneralTracker:
    from accelerate.tracking import WandBTracker

    where = folder / "tracking"
    where.mkdir(exist_ok=True)
    # accelerate would write settings to wandb's global run, but there may be several: pass them at the start
    tracker: Any = WandBTracker(
        _project(folder), name=label, dir=str(where), config=dict(settings), reinit="create_new"
    )
    tracker.start()
    return tracker


def _mlflow(folder: Path, label: str, settings: Mapping[str, Any]) -> GeneralTracker:
    from accelerate.tracking import MLflowTracker

    if "MLFLOW_TRACKING_URI" not in os.environ:
        where = folder.resolve() / "tracking"
        where.mkdir(exist_ok=True)
        importlib.import_module("mlflow").set_tracking_uri(f"sqlite:///{where / 'mlflow.db'}")
    tracker: Any = MLflowTracker(_project(folder), run_name=label)
    tracker.start()
    tracker.store_init_configuration(dict(settings))
    return tracker


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One tracker of accelerate."""

    packages: Sequence[str]
    """Any one of these suffices."""
    make: Make
    many: bool
    """Whether several runs may be open in one process."""


KINDS: Mapping[str, Kind] = {
    "tensorboard": Kind(packages=("tensorboard", "tensorboardX"), make=_tensorboard, many=True),
    "wandb": Kind(packages=("wandb",), make=_wandb, many=True),
    "mlflow": Kind(packages=("mlflow",), make=_mlflow, many=False),
}


def _project(folder: Path) -> str:
    return f"mtlbench-{folder.resolve().name}"


def _label(cell: Cell) -> str:
    """A name that is valid as a folder name."""
    return re.sub(r"[^\w.+=-]+", "_", f"{cell.variant}-seed{cell.seed}-{cell.key[:8]}")


def _settings(cell: Cell) -> dict[str, bool | int | float | str]:
    """The cell as a flat dict."""
    flat: dict[str, Any] = {
        "method": cell.method,
        "variant": cell.variant,
        "seed": cell.seed,
        "model": local_name(cell.model),
        "tasks": ",".join(cell.tasks),
        "key": cell.key,
        **{f"setting.{name}": value for name, value in cell.settings.items()},
        **{f"protocol.{name}": value for name, value in asdict(cell.protocol).items()},
    }
    return {name: "none" if value is None else value for name, value in flat.items()}
