"""Importance of parameters, by Optuna."""

from __future__ import annotations

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial

from harness.store.attrs import TrialAttrs

EVALUATOR = "PED-ANOVA"
_FEWEST = 8


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each parameter for the first score of a trial, by PED-ANOVA (Watanabe et al. 2023), summing to 1.

    The first rung is where every trial is comparable, pruned ones too; final scores exist only for the few that the
    pruner let through. Empty with fewer than 8 trials, or where Optuna cannot compute it.
    """
    scored = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        if trial.intermediate_values and not TrialAttrs.parse(trial.user_attrs).recipe  # a baseline searches nothing
    ]
    if len(scored) < _FEWEST:
        return {}
    first_rung = optuna.create_study(direction="minimize")
    for trial in scored:
        value = trial.intermediate_values[min(trial.intermediate_values)]
        first_rung.add_trial(create_trial(params=trial.params, distributions=trial.distributions, value=value))
    # A conditional parameter exists in some trials only, whose scores depend on the condition as well.
    common = sorted(set.intersection(*(set(trial.params) for trial in scored)))
    try:
        importance = get_param_importances(first_rung, evaluator=PedAnovaImportanceEvaluator(), params=common)
    except (RuntimeError, ValueError):
        return {}
    return {name: float(value) for name, value in importance.items()}
