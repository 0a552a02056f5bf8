from __future__ import annotations

import optuna

from harness.store.samplers import importances


def study_of(n: int) -> optuna.Study:
    """The first rung depends on x alone; y is noise; z exists in every other trial."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(n):
        trial = study.ask()
        x, _ = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        if number % 2:
            trial.suggest_float("z", 0, 1)
        trial.report((x - 0.3) ** 2, 100)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED) if number % 3 else study.tell(trial, 1.0)
    return study


def test_importance_is_of_the_first_rung_and_counts_pruned_trials():
    found = importances(study_of(40))
    assert set(found) == {"x", "y"}, "conditional parameters are left out"
    assert found["x"] > 0.8
    assert abs(sum(found.values()) - 1) < 1e-6


def test_few_trials_tell_nothing():
    assert importances(study_of(7)) == {}
    assert importances(optuna.create_study()) == {}
