"""A search as a study in an Optuna storage, for Optuna's own dashboard and plots. A copy: nothing reads it back."""

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
    """Refuse a storage that cannot be written to; opens and makes nothing.

    Raises:
        RequestError: the URL cannot be read, its driver is not installed, or its folder does not exist.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    how = "Write an SQLAlchemy URL, such as sqlite:///tuning.db."
    try:
        found = make_url(url)
        found.get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise RequestError(f"--to-optuna {url!r} cannot be used: {error}. {how}") from error
    if found.get_backend_name() != "sqlite":
        return
    if not found.database or found.database == ":memory:":
        raise RequestError(f"--to-optuna {url!r} names no file. {how}")
    if not Path(found.database).resolve().parent.is_dir():
        raise RequestError(f"--to-optuna {url!r}: the folder of {found.database!r} does not exist. Make it first.")


def study_name(tuning: Tuning) -> str:
    """Method, tasks, model, budget, pruning and seed in words: more trials go to the same study."""
    words = tuning.words
    where = f"{tuning.template.variant} on {words.tasks}, {words.model}"
    return f"{where}, {words.budget} budget, pruning {words.pruning}, seed {words.seed}"


def export(tuning: Tuning, trials: Sequence[Trial], url: str) -> str:
    """Add the settled trials that the storage lacks; gives the study's name there.

    Raises:
        RequestError: the storage cannot be opened, or holds other trials under this name.
    """
    name = study_name(tuning)
    settled = [frozen(tuning.space, trial, failed=TrialState.FAIL) for trial in trials if trial.state != "running"]
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(storage=url, study_name=name, direction="maximize", load_if_exists=True)
        there = study.get_trials(deepcopy=False)
        if [_told(trial) for trial in there] != [_told(trial) for trial in settled[: len(there)]]:
            raise RequestError(
                f"The storage {url!r} holds other trials under the name {name!r}. Name a new storage with --to-optuna."
            )
        study.add_trials(settled[len(there) :])
    except optuna.exceptions.StorageInternalError as error:
        raise RequestError(f"The storage {url!r} cannot be written: {error}. Name another with --to-optuna.") from error
    finally:
        optuna.logging.set_verbosity(level)
    return name


def _told(trial: FrozenTrial) -> tuple[object, ...]:
    return trial.user_attrs.get("cells"), trial.state, trial.values
