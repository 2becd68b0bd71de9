"""How much each searched setting matters for a good score."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from mtlbench.tuning.sampler import frozen
from mtlbench.tuning.space import Space, quiet_study
from mtlbench.tuning.trials import Trial

FEWEST = 10
"""Complete trials below which importances say nothing."""


def importances(space: Space, trials: Sequence[Trial]) -> Mapping[str, float] | None:
    """Setting to its share of the importance, largest first; ``None`` with fewer than ten complete trials.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255): how far the settings of the best trials differ from all.
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    if len(complete) < FEWEST:
        return None
    import optuna

    study = quiet_study(optuna.samplers.RandomSampler(seed=0))
    study.add_trials([frozen(space, trial) for trial in complete])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
