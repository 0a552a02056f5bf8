"""What a report needs of Optuna's own analysis."""

from __future__ import annotations

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

EVALUATOR = "PED-ANOVA"


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each parameter by PED-ANOVA (Watanabe et al. 2023) on finished trials, summing to 1.

    Empty where fewer than 4 trials are finished, or where they do not tell.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < 4:
        return {}
    try:
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (RuntimeError, ValueError):
        return {}
    return {name: float(value) for name, value in found.items()}
