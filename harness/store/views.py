"""The study as samplers and pruners see it: retries in the place of what they continue, one value a trial."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Container
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import HyperbandPruner, PercentilePruner
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.spec.objectives import dominated_share
from harness.store.attrs import StudyAttrs, TrialAttrs, position_of, retry_of

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def place_of(trial: FrozenTrial) -> int | None:
    """None where it has none yet, or was killed before it was given one."""
    position = position_of(trial.user_attrs)
    return trial.number if position is None and trial.state in FINISHED else position


def in_place(trial: FrozenTrial) -> FrozenTrial:
    place = place_of(trial)
    if place is None or place == trial.number:
        return trial
    placed = copy.copy(trial)
    placed.number = place
    return placed


class View(optuna.Study):
    """The study as samplers and pruners see it: a retry stands for the trial that it continues, under its number.

    Of several objectives the first, the score, is the one that rung scores are of. A pruner may look at some trials
    only, those that are ``among`` them; and is given, beside those that it asks for, the running ones that were scored
    where the ``judged`` one was scored last.
    """

    among: Callable[[FrozenTrial], bool] | None = None
    judged: FrozenTrial | None = None

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        found = super().get_trials(deepcopy, states)
        if self.judged is not None:
            own, step = self.judged.number, self.judged.last_step
            running = super().get_trials(deepcopy, (TrialState.RUNNING,))
            found += [trial for trial in running if trial.number != own and step in trial.intermediate_values]
        return found if self.among is None else [trial for trial in found if self.among(trial)]

    @property
    def direction(self) -> StudyDirection:
        return self.directions[0]

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = super()._get_trials(deepcopy, states, use_cache)
        if any(trial.state == TrialState.FAIL for trial in found):
            # Successive halving counts the rungs of failed trials, too: those of an attempt are its continuation's.
            every = found if states is None else super()._get_trials(deepcopy=False)
            continued = {retry_of(trial.user_attrs) for trial in every}
            found = [trial for trial in found if trial.number not in continued]
        return [in_place(trial) for trial in found]


class Ranked(View):
    """A study of several objectives as pruners see it: one value a trial, at one step, lower is better.

    It is the share of other trials that dominate it in those of the studied objectives that are known at a rung: the
    score, and the seconds where they are one.
    """

    step: int | None = None

    @functools.cached_property
    def timed(self) -> bool:
        """Whether seconds are an objective."""
        return "seconds" in StudyAttrs.parse(self.user_attrs).spec["objectives"]

    def seen(self, trial: FrozenTrial) -> FrozenTrial:
        shown = copy.copy(trial)
        shown.intermediate_values = {}
        own = rung_losses(trial, self.step, timed=self.timed)
        if own is not None and self.step is not None:
            rest = [other for other in super()._get_trials(deepcopy=False) if other._trial_id != trial._trial_id]
            others = [rung_losses(other, self.step, timed=self.timed) for other in rest]
            shown.intermediate_values[self.step] = dominated_share(own, [each for each in others if each is not None])
        return shown

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [self.seen(trial) for trial in super()._get_trials(deepcopy, states, use_cache)]


class AbreastPercentile(PercentilePruner):
    """The percentile of the finished trials and of those that still run and were scored at the same rung.

    Optuna's waits for trials that finished: as many workers as there are train all that they begin with in full.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        seen = copy.copy(study)
        assert isinstance(seen, View)
        seen.judged = trial
        return super().prune(seen, trial)


class PlacedHyperband(HyperbandPruner):
    """Hyperband whose brackets are of a :class:`View`: Optuna's own are of all attempts, by their own numbers."""

    def _create_bracket_study(self, study: optuna.Study, bracket_id: int) -> optuna.Study:
        bracket = copy.copy(study)
        assert isinstance(bracket, View)
        bracket.among = lambda trial: self._get_bracket_id(study, trial) == bracket_id
        return bracket

    def first_rung(self, study: optuna.Study, place: int) -> int:
        """Images after which the trial of this place is judged first: where its bracket begins, the last at the end."""
        if not self._pruners:
            self._try_initialization(study)
        trial = create_trial(state=TrialState.RUNNING)
        trial.number = place
        return int(self._min_resource * self._reduction_factor ** self._get_bracket_id(study, trial))


def rung_losses(trial: FrozenTrial, step: int | None, *, timed: bool) -> tuple[float, ...] | None:
    """The score of a trial at a rung, with ``timed`` the seconds trained too; None where it was not scored there."""
    score = trial.intermediate_values.get(step) if step is not None else None
    if score is None or step is None or not timed:
        return None if score is None else (score,)
    seconds = TrialAttrs.parse(trial.user_attrs).rung_seconds.get(step)
    return None if seconds is None else (score, seconds)


class Placed(BaseSampler):
    """A sampler that is told of a trial under its place's number, by which it leaves it out of the running ones."""

    def __init__(self, sampler: BaseSampler) -> None:
        self.sampler = sampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(study, in_place(trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.sampler.sample_relative(study, in_place(trial), search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.sampler.sample_independent(study, in_place(trial), param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, in_place(trial))
