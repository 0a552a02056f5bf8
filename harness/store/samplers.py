"""Optuna's sampler and pruner of a study."""

from __future__ import annotations

import warnings

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from harness.gan.hparams import derive_seed
from harness.spec.resolved import ResolvedStudy
from harness.store.views import AbreastPercentile, PlacedHyperband


def make_sampler(spec: ResolvedStudy, trials_so_far: int) -> BaseSampler:
    """A fresh sampler, seeded from the study's seed and the number of trials, so that a restart repeats no point."""
    seed = derive_seed(spec.sampler.seed, "sampler", trials_so_far)
    if spec.sampler.name == "random":
        return RandomSampler(seed=seed)
    # Baselines have no searched parameters: in groups, the joint model of all others is kept beside such trials.
    baselines = any(preset.recipe for preset in spec.presets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of group
        return TPESampler(seed=seed, n_startup_trials=spec.sampler.n_startup_trials, multivariate=True, group=baselines)


def make_pruner(spec: ResolvedStudy) -> BasePruner:
    """The pruner, asked of a :class:`harness.store.views.View`; its resource is images shown, as in reported steps."""
    factor = spec.pruner.reduction_factor
    # Optuna's rungs are multiples of the first: rounded up, it would put them behind those that are reported.
    first = max(1, min(images(mark) // factor**place for place, mark in enumerate(spec.budget.marks)))
    match spec.pruner.name:
        case "none":
            return NopPruner()
        case "median":
            return AbreastPercentile(50, n_startup_trials=spec.pruner.n_startup_trials)
        case "percentile":
            return AbreastPercentile(spec.pruner.percentile, n_startup_trials=spec.pruner.n_startup_trials)
        case "successive_halving":
            return SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
        case "hyperband":
            return PlacedHyperband(
                min_resource=first,
                max_resource=images(spec.budget.kimg),
                reduction_factor=factor,
            )


def study_in_memory(name: str | None = None, sampler: BaseSampler | None = None) -> optuna.Study:
    """A study that no database has, made without a word on the terminal."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(study_name=name, sampler=sampler)
    finally:
        optuna.logging.set_verbosity(before)


def images(kimg: float) -> int:
    """kimg as Optuna's integer step: images shown."""
    return round(kimg * 1000)
