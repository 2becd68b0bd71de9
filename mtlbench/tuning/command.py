"""``mtlbench tune``: from options to trials, documents and the command that uses the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mtlbench.api.cell import Cell
from mtlbench.api.tuning import TrialScores, TunedMethod
from mtlbench.backbones.names import check_reachable
from mtlbench.errors import RequestError
from mtlbench.executors.options import executor_of
from mtlbench.executors.runner import INTERRUPTED, Session
from mtlbench.observers.trackers import trackers_named
from mtlbench.planning.request import check_devices
from mtlbench.plugins import load_observers
from mtlbench.store import RunFolder
from mtlbench.tuning.grid import rate_of
from mtlbench.tuning.report import settings_text, trial_line, write_documents
from mtlbench.tuning.sampler import frozen
from mtlbench.tuning.search import Outcome, search
from mtlbench.tuning.space import space_text
from mtlbench.tuning.trials import Trial, best_of
from mtlbench.tuning.tuning import Tuning, TuningOptions, make_tuning


def tune(
    options: TuningOptions,
    *,
    out: Path | None,
    to_optuna: str | None,
    executor: str,
    workers: int,
    device: str,
    track: str | None = None,
    limits: Mapping[str, Any] | None = None,
    echo: Callable[[str], None],
    log: Callable[[str], None],
) -> int:
    """Search, write the documents and the export, and print the result; returns the exit code.

    ``limits`` are the options of :class:`~mtlbench.executors.runner.Session` for devices and times, ``track`` names
    trackers. ``echo`` gets the result, ``log`` the progress.

    Raises:
        RequestError: an option is wrong; nothing has been created then.
    """
    tuning = make_tuning(options)
    limits = limits or {}
    if "devices" in limits:
        check_devices(limits["devices"], [tuning.template])
    starter = executor_of(executor)
    starter.check(device)
    if "devices" in limits:
        starter.check_shared(device, limits["devices"])
    observers = load_observers(log)
    check_reachable(options.model)
    if to_optuna is not None:
        from mtlbench.tuning.command import check_storage

        check_storage(to_optuna)
    folder = RunFolder(out or tuning.default_folder)
    observers |= trackers_named(track, folder.path)
    folder.preflight()
    places = folder.models_in([tuning.template])
    tuning = replace(tuning, plan=replace(tuning.plan, cells=folder.known_as(tuning.plan.cells)))
    effort = {"effort": tuning.effort, "seed": options.seed, "searches": list(options.searches)}

    settled: list[Trial] = []

    def on_settled(trial: Trial) -> None:
        settled.append(trial)
        log(trial_line(trial, best_of(settled)))

    session_options = {**limits, "device": device, "workers": workers, "at_once": tuning.at_once}
    with Session(folder, starter, observers, **session_options) as session:

        def run(cells: Sequence[Cell]) -> int:
            request = folder.put_request({**tuning.plan.request.to_json(), "tuning": effort, **places}, cells)
            return session.run(request, cells)

        outcome = search(tuning, folder, run, on_settled=on_settled)
    (written,) = folder.put_searches([found_by(tuning, outcome)])
    for path in write_documents(tuning, outcome, folder.path / "report", search=written):
        log(f"wrote {path}")
    if to_optuna is not None:
        from mtlbench.tuning.command import export

        log(f"wrote study {export(tuning, outcome.trials, to_optuna)!r} to {to_optuna}")
    if outcome.code == INTERRUPTED:
        log(f"{len(settled)} of {tuning.trials} trials are settled. Run the same command again to resume.")
        return outcome.code
    best = outcome.best
    if best is None or best.score is None:
        log("No trial is complete, so there are no best settings. The reasons are above and in the report.")
        return outcome.code
    echo(f"best: {settings_text(best.settings)} (trial {best.number}, {best.score:.2f} on held-out training rows)")
    echo(tuning.run_command(best.settings, search=written))
    return outcome.code


def found_by(tuning: Tuning, outcome: Outcome) -> TunedMethod:
    """What the complete trials of a search say."""
    trials = [
        TrialScores(
            settings=trial.settings,
            learning_rate=rate_of(tuning.space.method, trial.settings, tuning.template.protocol.learning_rate),
            scores={trial.records[-1].cell.seed: trial.score},
        )
        for trial in outcome.trials
        if trial.score is not None
    ]
    return TunedMethod(
        effort=tuning.identity,
        method=tuning.template.method,
        fixed=dict(tuning.template.settings),
        variant=tuning.template.variant,
        fields={name: space_text(domain) for name, domain in tuning.space.fields.items()},
        trials=tuple(trials),
    )


def check_storage(url: str) -> None:
    """Reject a storage that cannot be written to, without opening it.

    Raises:
        RequestError: the URL cannot be parsed, its driver is not installed, or its folder does not exist.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    hint = "Write an SQLAlchemy URL, such as sqlite:///tuning.db."
    try:
        parsed = make_url(url)
        parsed.get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise RequestError(f"--to-optuna {url!r} cannot be used: {error}. {hint}") from error
    if parsed.get_backend_name() != "sqlite":
        return
    if not parsed.database or parsed.database == ":memory:":
        raise RequestError(f"--to-optuna {url!r} names no file. {hint}")
    if not Path(parsed.database).resolve().parent.is_dir():
        raise RequestError(f"--to-optuna {url!r}: the folder of {parsed.database!r} does not exist. Make it first.")


def study_name(tuning: Tuning) -> str:
    """Name by method, tasks, model, budget, pruning and seed, so that more trials go to the same study."""
    options = tuning.options
    where = f"{tuning.template.variant} on {options.tasks}, {options.model}"
    return f"{where}, {options.budget} budget, pruning {options.pruning}, seed {options.seed}"


def export(tuning: Tuning, trials: Sequence[Trial], url: str) -> str:
    """Add the settled trials that the storage lacks; returns the name of the study.

    Raises:
        RequestError: the storage cannot be opened, or holds other trials under this name.
    """
    name = study_name(tuning)
    settled = [frozen(tuning.space, trial, failed=TrialState.FAIL) for trial in trials if trial.state != "running"]
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(storage=url, study_name=name, direction="maximize", load_if_exists=True)
        stored = study.get_trials(deepcopy=False)
        if [_identity(trial) for trial in stored] != [_identity(trial) for trial in settled[: len(stored)]]:
            raise RequestError(
                f"The storage {url!r} holds other trials under the name {name!r}. Name a new storage with --to-optuna."
            )
        study.add_trials(settled[len(stored) :])
    except optuna.exceptions.StorageInternalError as error:
        raise RequestError(f"The storage {url!r} cannot be written: {error}. Name another with --to-optuna.") from error
    finally:
        optuna.logging.set_verbosity(level)
    return name


def _identity(trial: FrozenTrial) -> tuple[object, ...]:
    return trial.user_attrs.get("cells"), trial.state, trial.values
