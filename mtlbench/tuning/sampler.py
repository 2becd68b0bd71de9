"""What to try next: Optuna's TPE as a function of the study's seed, the number of the trial and earlier results.

Nothing of Optuna is kept between two suggestions, so the same results give the same suggestion whenever it is asked.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from mtlbench.api.cell import digest
from mtlbench.api.method import Value
from mtlbench.tuning.space import Space, quiet_study
from mtlbench.tuning.trials import Trial


def suggest(space: Space, past: Sequence[Trial], *, seed: int, number: int, startup: int) -> dict[str, Value]:
    """Settings for trial ``number`` of the study ``seed`` given the trials before it, some of which may still run.

    The first ``startup`` results are awaited before TPE models them; until then values are drawn at random.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=int(digest([seed, number], length=8), 16),
            multivariate=True,
            n_startup_trials=startup,
            constant_liar=True,
        )
        study = quiet_study(sampler)
        study.add_trials([frozen(space, trial) for trial in past])
        return space.settle(study.ask(dict(space.fields)).params)


def in_space(space: Space, trial: Trial) -> bool:
    """Whether the trial's settings could have been suggested from ``space``."""
    try:
        frozen(space, trial)
    except ValueError:
        return False
    return True


def frozen(space: Space, trial: Trial, *, failed: TrialState = TrialState.PRUNED) -> FrozenTrial:
    """The trial as Optuna sees it.

    A failed one is by default a pruned one that never scored, which TPE ranks last: settings that cannot be run are
    not asked for again and again.

    Raises:
        ValueError: the settings lie outside the space.
    """
    states = {"running": TrialState.RUNNING, "complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    made = create_trial(
        state=states.get(trial.state, failed),
        params=dict(trial.settings),
        distributions=dict(space.fields),
        value=trial.score,
        intermediate_values={} if trial.state == "failed" else dict(enumerate(trial.scores)),
        user_attrs={"cells": [record.key for record in trial.records], "trial": trial.number},
    )
    times = [record.provenance.get(name) for record in trial.records for name in ("started", "finished")]
    known = [datetime.datetime.fromtimestamp(time) for time in times if isinstance(time, int | float)]
    if known:
        made.datetime_start = min(known)
        made.datetime_complete = max(known) if made.state.is_finished() else None
    return made
