"""Export of a search to an Optuna storage, for Optuna's dashboard and plots. It is never read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from mtlbench.errors import RequestError
from mtlbench.tuning.sampler import frozen
from mtlbench.tuning.trials import Trial
from mtlbench.tuning.tuning import Tuning


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
