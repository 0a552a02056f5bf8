"""A study's samplers and pruners, the study as they see it, and the importance of its parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Container
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, NopPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.gan.hparams import derive_seed
from harness.spec.objectives import dominated_share
from harness.spec.resolved import ResolvedStudy
from harness.store.optuna_private import HyperbandOfView, StudyView, halving_bar, id_of
from harness.store.records import TrialAttrs, stored_position, stored_retry_of

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
EVALUATOR = "PED-ANOVA"
_FEWEST = 8
_RANDOM_EVERY = 3


def position_of(trial: FrozenTrial) -> int | None:
    """A trial's position in the search; None if it was given none yet, or was killed before."""
    position = stored_position(trial.user_attrs)
    return trial.number if position is None and trial.state in FINISHED else position


def by_position(trial: FrozenTrial) -> FrozenTrial:
    """The trial with its position as its number, as samplers and pruners see it."""
    position = position_of(trial)
    if position is None or position == trial.number:
        return trial
    numbered = copy.copy(trial)
    numbered.number = position
    return numbered


class PositionView(StudyView):
    """A study in which trials are numbered by position, and a retry replaces the trial that it continues.

    Rung scores belong to the first objective, which is the score.
    """

    # The trial that is judged: get_trials also returns running trials scored at its newest rung.
    judged: FrozenTrial | None = None

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        trials = super().get_trials(deepcopy, states)
        if self.judged is not None:
            own, step = self.judged.number, self.judged.last_step
            running = super().get_trials(deepcopy, (TrialState.RUNNING,))
            trials += [trial for trial in running if trial.number != own and step in trial.intermediate_values]
        return trials

    @property
    def direction(self) -> StudyDirection:
        return self.directions[0]

    def visible_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = super().visible_trials(deepcopy, states, use_cache)
        if any(trial.state == TrialState.FAIL for trial in trials):
            # Successive halving also counts rungs of failed trials; those of an attempt belong to its retry.
            every = trials if states is None else super().visible_trials(deepcopy=False)
            continued = {stored_retry_of(trial.user_attrs) for trial in every}
            trials = [trial for trial in trials if trial.number not in continued]
        return [by_position(trial) for trial in trials]


class DominanceView(PositionView):
    """A study of several objectives as pruners see it: one value for each trial, at one step, lower is better.

    The value is the share of other trials that dominate it in the objectives known at a rung: the score, and the
    seconds if they are one.
    """

    step: int | None = None
    timed = False  # whether seconds are an objective

    def as_ranked(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial with its share as its only rung score."""
        ranked = copy.copy(trial)
        ranked.intermediate_values = {}
        own = rung_losses(trial, self.step, timed=self.timed)
        if own is not None and self.step is not None:
            rest = [other for other in super().visible_trials(deepcopy=False) if id_of(other) != id_of(trial)]
            others = [rung_losses(other, self.step, timed=self.timed) for other in rest]
            ranked.intermediate_values[self.step] = dominated_share(own, [each for each in others if each is not None])
        return ranked

    def visible_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [self.as_ranked(trial) for trial in super().visible_trials(deepcopy, states, use_cache)]


def rung_losses(trial: FrozenTrial, step: int | None, *, timed: bool) -> tuple[float, ...] | None:
    """A trial's score at a rung, with ``timed`` also the seconds trained; None if it was not scored there."""
    if step is None or step not in trial.intermediate_values:
        return None
    score = trial.intermediate_values[step]
    if not timed:
        return (score,)
    seconds = TrialAttrs.parse(trial.user_attrs).rung_seconds.get(step)
    return None if seconds is None else (score, seconds)


class AsyncPercentilePruner(PercentilePruner):
    """The percentile of finished trials, and of running ones that were scored at the same rung.

    Optuna's pruner only looks at finished trials, so with N workers the first N would all train in full.
    """

    def __init__(self, percentile: float, n_startup_trials: int) -> None:
        super().__init__(percentile, n_startup_trials=n_startup_trials)
        self.percentile = percentile

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        view = copy.copy(study)
        assert isinstance(view, PositionView)
        view.judged = trial
        return super().prune(view, trial)


class PositionSampler(BaseSampler):
    """A sampler that sees a trial's position as its number; by it, samplers exclude the trial from the running ones."""

    def __init__(self, sampler: BaseSampler) -> None:
        self.sampler = sampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(study, by_position(trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.sampler.sample_relative(study, by_position(trial), search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.sampler.sample_independent(study, by_position(trial), param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, by_position(trial))


def make_sampler(spec: ResolvedStudy, trials_so_far: int) -> BaseSampler:
    """A new sampler, seeded by the study's seed and the number of trials, so that a restart repeats no point.

    Every third trial is random, as in BOHB (Falkner et al. 2018, section 3): a model of few trials can settle on a
    region without good ones, and proposes little else for dozens of trials (docs/rungs.md).
    """
    seed = derive_seed(spec.sampler.seed, "sampler", trials_so_far)
    if spec.sampler.name == "random" or trials_so_far % _RANDOM_EVERY == _RANDOM_EVERY - 1:
        return RandomSampler(seed=seed)
    n_startup = spec.sampler.n_startup_trials
    # Baselines have no searched parameters; with groups, the other trials keep their joint model. In a search with
    # promotion the sampler does not see baselines.
    baselines = not spec.promotions and any(preset.recipe for preset in spec.presets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if spec.sampler.name == "gp":
            return GPSampler(seed=seed, n_startup_trials=n_startup, warn_independent_sampling=False)
        return TPESampler(seed=seed, n_startup_trials=n_startup, multivariate=True, group=baselines)


def make_pruner(spec: ResolvedStudy) -> BasePruner:
    """The pruner for a ``PositionView``; its resource is images shown, like the reported steps."""
    factor = spec.pruner.reduction_factor
    # Optuna's rungs are multiples of the first. Rounded up, they would miss the reported steps.
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
            longest = kimg_to_images(spec.budget.kimg)
            return HyperbandOfView(min_resource=first, max_resource=longest, reduction_factor=factor)


def is_pruned(study: optuna.Study, spec: ResolvedStudy, trial: FrozenTrial) -> bool:
    """The pruner's verdict on a trial.

    Optuna prunes by one objective only. With several, its pruners see the share of trials that dominate a trial at its
    newest rung instead of rung scores: a trial that is Pareto-optimal there is not pruned.
    """
    own, pruner = by_position(trial), make_pruner(spec)
    if not spec.objectives:
        return bool(pruner.prune(PositionView(study), own))
    view = DominanceView(study)
    view.step, view.timed = own.last_step, "seconds" in spec.objectives
    return bool(pruner.prune(view, view.as_ranked(own)))


def pruning_bar(study: optuna.Study, spec: ResolvedStudy, trial: FrozenTrial) -> float | None:
    """The worst score that continues at the rung where the trial was just judged; None if there is none."""
    own, pruner, view = by_position(trial), make_pruner(spec), PositionView(study)
    if spec.objectives or own.last_step is None:
        return None
    if isinstance(pruner, HyperbandOfView):
        return halving_bar(pruner.rivals(view, own), own, spec.pruner.reduction_factor)
    if isinstance(pruner, SuccessiveHalvingPruner):
        return halving_bar(view.get_trials(deepcopy=False), own, spec.pruner.reduction_factor)
    if not isinstance(pruner, AsyncPercentilePruner):
        return None
    view.judged = own
    scores = [t.intermediate_values.get(own.last_step) for t in view.get_trials(False, (TrialState.COMPLETE,))]
    known = [score for score in scores if score is not None]
    return float(np.nanpercentile(known, pruner.percentile)) if known else None


def study_in_memory(name: str | None = None, sampler: BaseSampler | None = None) -> optuna.Study:
    """A study without a database, created without output."""
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
    """Importance of each parameter for a trial's first score, by PED-ANOVA (Watanabe et al. 2023), summing to 1.

    At the first rung all trials are comparable; only the few that were not pruned have final scores. Empty with fewer
    than 8 trials, or if Optuna cannot compute it.
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
    # Without conditional parameters: the scores of trials that have one also depend on its condition.
    common = sorted(set.intersection(*(set(trial.params) for trial in scored)))
    try:
        importance = get_param_importances(first_rung, evaluator=PedAnovaImportanceEvaluator(), params=common)
    except (RuntimeError, ValueError):
        return {}
    return {name: float(value) for name, value in importance.items()}
