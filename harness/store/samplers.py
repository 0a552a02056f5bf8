"""Optuna's sampler and pruner of a study."""

from __future__ import annotations

import warnings

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from harness.gan.hparams import derive_seed
from harness.spec.resolved import ResolvedStudy
from harness.store.optuna_private import HyperbandOfView
from harness.store.views import AsyncPercentilePruner


def make_sampler(spec: ResolvedStudy, trials_so_far: int) -> BaseSampler:
    """A new sampler, seeded from the study's seed and the number of trials, so that a restart repeats no point."""
    seed = derive_seed(spec.sampler.seed, "sampler", trials_so_far)
    if spec.sampler.name == "random":
        return RandomSampler(seed=seed)
    n_startup = spec.sampler.n_startup_trials
    # Baselines have no searched parameters; in groups, the other trials keep their joint model. With promotion the
    # sampler does not see them.
    baselines = not spec.promotions and any(preset.recipe for preset in spec.presets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if spec.sampler.name == "gp":
            return GPSampler(seed=seed, n_startup_trials=n_startup, warn_independent_sampling=False)
        return TPESampler(seed=seed, n_startup_trials=n_startup, multivariate=True, group=baselines)


def make_pruner(spec: ResolvedStudy) -> BasePruner:
    """The pruner of a :class:`harness.store.views.PositionView`; its resource is images shown, as in reported steps."""
    factor = spec.pruner.reduction_factor
    # Optuna's rungs are multiples of the first, which is rounded down: rounded up, they would miss the reported ones.
    first = max(1, min(kimg_to_images(mark) // factor**index for index, mark in enumerate(spec.budget.marks)))
    match spec.pruner.name:
        case "none" | "promotion":
            return NopPruner()
        case "median":
            return AsyncPercentilePruner(50, n_startup_trials=spec.pruner.n_startup_trials)
        case "percentile":
            return AsyncPercentilePruner(spec.pruner.percentile, n_startup_trials=spec.pruner.n_startup_trials)
        case "successive_halving":
            return SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
        case "hyperband":
            return HyperbandOfView(
                min_resource=first,
                max_resource=kimg_to_images(spec.budget.kimg),
                reduction_factor=factor,
            )


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
