"""The next suggestion: Optuna's TPE as a pure function of the study's seed, the trial number and earlier results.

No Optuna state is kept between suggestions, so the same results always give the same suggestion.
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

    Until there are ``startup`` results, values are drawn at random.
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
    """The trial as an Optuna trial.

    A failed one becomes by default a pruned one without a score, which TPE ranks last, so that settings that cannot run
    are not suggested again and again.

    Raises:
        ValueError: the settings lie outside the space.
    """
    states = {"running": TrialState.RUNNING, "complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    optuna_trial = create_trial(
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
        optuna_trial.datetime_start = min(known)
        optuna_trial.datetime_complete = max(known) if optuna_trial.state.is_finished() else None
    return optuna_trial
