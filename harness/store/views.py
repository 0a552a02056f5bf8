"""The study as samplers and pruners see it: retries at the position of what they continue, one value a trial."""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import PercentilePruner
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from harness.spec.objectives import dominated_share
from harness.store.optuna_private import StudyView, id_of
from harness.store.records import TrialAttrs, stored_position, stored_retry_of

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def position_of(trial: FrozenTrial) -> int | None:
    """A trial's position in the search; None where it has none yet, or was killed before it was given one."""
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
    """A study in which a retry stands for the trial that it continues, under its number.

    Of several objectives the first, the score, is the one that rung scores belong to.
    """

    # For whose verdict get_trials adds the running ones that were scored at its newest rung.
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
            # Successive halving counts the rungs of failed trials, too: those of an attempt are its continuation's.
            every = trials if states is None else super().visible_trials(deepcopy=False)
            continued = {stored_retry_of(trial.user_attrs) for trial in every}
            trials = [trial for trial in trials if trial.number not in continued]
        return [by_position(trial) for trial in trials]


class DominanceView(PositionView):
    """A study of several objectives as pruners see it: one value a trial, at one step, lower is better.

    The value is the share of other trials that dominate it in those of the study's objectives that are known at a rung:
    the score, and the seconds where they are an objective.
    """

    step: int | None = None
    timed = False  # whether seconds are an objective

    def as_ranked(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial with its share as its only rung score."""
        ranked = copy.copy(trial)
        ranked.intermediate_values = {}
        own = self._losses(trial)
        if own is not None and self.step is not None:
            rest = [other for other in super().visible_trials(deepcopy=False) if id_of(other) != id_of(trial)]
            others = [losses for other in rest if (losses := self._losses(other)) is not None]
            ranked.intermediate_values[self.step] = dominated_share(own, others)
        return ranked

    def _losses(self, trial: FrozenTrial) -> tuple[float, ...] | None:
        """What is known of a trial at the step; None where it was not scored there."""
        if self.step is None or self.step not in trial.intermediate_values:
            return None
        score = trial.intermediate_values[self.step]
        if not self.timed:
            return (score,)
        seconds = TrialAttrs.parse(trial.user_attrs).rung_seconds.get(self.step)
        return None if seconds is None else (score, seconds)

    def visible_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [self.as_ranked(trial) for trial in super().visible_trials(deepcopy, states, use_cache)]


class AsyncPercentilePruner(PercentilePruner):
    """The percentile of the finished trials and of the running ones that were scored at the same rung.

    Optuna's pruner waits for finished trials: with N workers, the first N trials would all train in full.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        view = copy.copy(study)
        assert isinstance(view, PositionView)
        view.judged = trial
        return super().prune(view, trial)


class PositionSampler(BaseSampler):
    """A sampler that knows a trial by its position, by which it leaves the trial out of the running ones."""

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
