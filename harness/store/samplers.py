"""What Optuna computes for a study: its sampler and pruner, and the importance of its parameters."""

from __future__ import annotations

import warnings

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import create_trial

from harness.gan.hparams import derive_seed
from harness.spec.resolved import ResolvedStudy
from harness.store.optuna_private import HyperbandOfView
from harness.store.records import TrialAttrs
from harness.store.views import FINISHED, AsyncPercentilePruner

EVALUATOR = "PED-ANOVA"
_FEWEST = 8


def make_sampler(spec: ResolvedStudy, trials_so_far: int) -> BaseSampler:
    """A new sampler, seeded from the study's seed and the number of trials, so that a restart repeats no point."""
    seed = derive_seed(spec.sampler.seed, "sampler", trials_so_far)
    if spec.sampler.name == "random":
        return RandomSampler(seed=seed)
    # Baselines have no searched parameters; in groups, the other trials keep their joint model.
    baselines = any(preset.recipe for preset in spec.presets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of group
        return TPESampler(seed=seed, n_startup_trials=spec.sampler.n_startup_trials, multivariate=True, group=baselines)


def make_pruner(spec: ResolvedStudy) -> BasePruner:
    """The pruner of a ``PositionView``; its resource is images shown, as in reported steps."""
    factor = spec.pruner.reduction_factor
    # Optuna's rungs are multiples of the first, which is rounded down: rounded up, they would miss the reported ones.
    first = max(1, min(kimg_to_images(mark) // factor**index for index, mark in enumerate(spec.budget.marks)))
    match spec.pruner.name:
        case "none":
            return NopPruner()
        case "median":
            return AsyncPercentilePruner(50, n_startup_trials=spec.pruner.n_startup_trials)
        case "percentile":
            return AsyncPercentilePruner(spec.pruner.percentile, n_startup_trials=spec.pruner.n_startup_trials)
        case "successive_halving":
            return SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
        case "hyperband":
            longest = kimg_to_images(spec.budget.kimg)
            return HyperbandOfView(min_resource=first, max_resource=longest, reduction_factor=factor)


def study_in_memory(name: str | None = None, sampler: BaseSampler | None = None) -> optuna.Study:
    """A study outside any database, created without output on the terminal."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(study_name=name, sampler=sampler)
    finally:
        optuna.logging.set_verbosity(before)


def kimg_to_images(kimg: float) -> int:
    """Images shown, which is Optuna's integer step of a rung score."""
    return round(kimg * 1000)


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each parameter for the first score of a trial, by PED-ANOVA (Watanabe et al. 2023), summing to 1.

    The first rung is where every trial is comparable, pruned ones too; final scores exist only for the few that the
    pruner let through. Empty with fewer than 8 trials, or where Optuna cannot compute it.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # with scikit-learn: seconds

    scored = [
        trial
        for trial in study.get_trials(deepcopy=False, states=FINISHED)
        if trial.intermediate_values and not TrialAttrs.parse(trial.user_attrs).recipe  # a baseline searches nothing
    ]
    if len(scored) < _FEWEST:
        return {}
    first_rung = study_in_memory()
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
