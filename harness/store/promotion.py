"""Promotion: every trial is paused at its rungs, and only the best of those scored there continue.

The promotion variant of asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning", algorithm 2). A verdict is never final while the study runs: a paused trial may be promoted
later, when more trials have been scored at its rung.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from harness.gan.hparams import derive_seed
from harness.spec.objectives import as_losses, dominated_share
from harness.spec.resolved import ResolvedStudy, suggest
from harness.spec.tables import CategoricalParam, Param
from harness.store.records import StudyAttrs, TrialAttrs
from harness.store.samplers import (
    PositionSampler,
    PositionView,
    kimg_to_images,
    make_sampler,
    rung_losses,
    study_in_memory,
)

# By trial, lower is better.
Losses = Mapping[int, float]
# Searched parameters of an earlier study's trial, and its merit in that study.
Lesson = tuple[Mapping[str, Any], float]
# Trials of earlier studies that a sampler sees at first; one fewer for each scored trial of its own study.
EARLIER = 20


def next_promotion(
    rungs: Sequence[tuple[Losses, int]], paused: Mapping[int, int], *, closing: bool, gone: Container[int] = ()
) -> int | None:
    """The paused trial that continues next, or None.

    Of n trials scored at a rung the best ⌊n / keep⌋ may continue, and no more than ⌊n / keep⌋ in all: a trial that is
    among the best only because better ones came after others had been promoted waits for its turn. Trials at the last
    rung go first. Once no new trial will start, the best ⌈n / keep⌉ may continue, and earlier promotions no longer
    count, so that every study ends with a final score; then trials at the first rung go first, because a rung compares
    best when all its trials have been scored.

    Args:
        rungs: (losses of the trials scored there, ``keep``) for each rung, in order.
        paused: the index of each paused trial's rung.
        closing: whether no new trial will start.
        gone: trials that count among the n but cannot continue, because an earlier end of the study pruned them.
    """
    may_continue = [(index, losses, len(losses) // keep, True) for index, (losses, keep) in enumerate(rungs)][::-1]
    if closing:
        may_continue += [(index, losses, -(-len(losses) // keep), False) for index, (losses, keep) in enumerate(rungs)]
    for index, losses, count, early in may_continue:
        promoted = sum(paused.get(trial) != index and trial not in gone for trial in losses)
        if early and promoted >= count:
            continue
        order = sorted((loss, trial) for trial, loss in losses.items() if trial not in gone)
        for _, trial in order[:count]:
            if paused.get(trial) == index:
                return trial
    return None


def order_of_merit(levels: Sequence[Losses]) -> list[int]:
    """All trials that have a loss at the first level, the best first.

    Trials start in the order of the first level; those that reached a later level are reordered among their own places,
    by their losses there. So trials with the same last level are in its order, and the places of those that got further
    are decided by their ranks at the first level.

    Args:
        levels: losses at each rung in order, then final ones; a later level's trials are all in the earlier ones.
    """
    first = levels[0]
    order = sorted(first, key=lambda trial: (first[trial], trial))
    for losses in levels[1:]:
        places = [place for place, trial in enumerate(order) if trial in losses]
        came = sorted((order[place] for place in places), key=lambda trial: (losses[trial], trial))
        for place, trial in zip(places, came, strict=True):
            order[place] = trial
    return order


def merits(levels: Sequence[Losses]) -> dict[int, float]:
    """One value for each trial, lower is better: the normal quantile of its place in the order of merit."""
    order = order_of_merit(levels)
    return {trial: NormalDist().inv_cdf((place + 0.5) / len(order)) for place, trial in enumerate(order)}


class MeritView(PositionView):
    """A study as samplers see it in a search with promotion: each trial scored at any rung has one value.

    Paused, pruned, running and complete trials share the scale of :func:`merits`. Diverged trials stay infeasible,
    running ones without a score stay running, and baselines, which search nothing, are left out. Trials of earlier
    studies come first, evenly spread over their ranks; each scored trial of this study replaces one of them.
    """

    def __init__(self, study: optuna.Study, spec: ResolvedStudy, **parts: Any) -> None:
        super().__init__(study, **parts)
        self.spec, lessons = spec, StudyAttrs.parse(study.user_attrs).lessons
        self.taught = [_as_trial(lesson, index, spec) for index, lesson in enumerate(lessons)]

    @property
    def directions(self) -> list[StudyDirection]:
        return [StudyDirection.MINIMIZE]

    def visible_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = [trial for trial in super().visible_trials(deepcopy=False) if not is_baseline(trial)]
        values = merits(losses_at_levels(trials, self.spec))
        n_taught = max(0, len(self.taught) - len(values))
        taught = [self.taught[at] for at in spread(len(self.taught), n_taught)]
        shown = taught + [_with_value(trial, values.get(trial.number)) for trial in trials]
        return [trial for trial in shown if states is None or trial.state in states]


def spread(n: int, count: int) -> list[int]:
    """At most ``count`` of the places 0 to n - 1, evenly spread."""
    count = min(n, count)
    return [(2 * index + 1) * n // (2 * count) for index in range(count)]


def _as_trial(lesson: Lesson, index: int, spec: ResolvedStudy) -> FrozenTrial:
    """A lesson as a trial of this study; parameters that the earlier study did not search are drawn."""
    params, value = lesson
    study = study_in_memory(sampler=RandomSampler(seed=derive_seed(spec.sampler.seed, "earlier", index)))
    study.enqueue_trial(in_space(params, spec))
    suggest(study.ask(), spec)
    taught = study.trials[0]
    taught.number, taught.state, taught.values = -1 - index, TrialState.COMPLETE, [value]
    return taught


def in_space(params: Mapping[str, Any], spec: ResolvedStudy) -> dict[str, Any]:
    """The parameters that the study searches, and whose values it allows."""

    def is_allowed(param: Param, value: Any) -> bool:
        if isinstance(param, CategoricalParam):
            return value in param.choices
        if isinstance(value, bool | str) or not param.low <= value <= param.high:
            return False
        steps = (value - param.low) / (param.step or 1)
        return param.step is None or math.isclose(steps, round(steps), abs_tol=1e-9)

    return {n: value for n, value in params.items() if n in spec.space and is_allowed(spec.space[n], value)}


def _with_value(trial: FrozenTrial, value: float | None) -> FrozenTrial:
    if value is None:
        return trial
    valued = copy.copy(trial)
    valued.state, valued.values, valued.intermediate_values = TrialState.COMPLETE, [value], {}
    return valued


def sampled_trial(study: optuna.Study, spec: ResolvedStudy, trial_id: int, position: int) -> optuna.Trial:
    """A running trial, whose suggestions depend on its position: a retry gets those of the killed trial."""
    sampler = PositionSampler(make_sampler(spec, position))
    if spec.promotions:
        return optuna.Trial(MeritView(study, spec, sampler=sampler), trial_id)
    return optuna.Trial(PositionView(study, sampler=sampler), trial_id)


def promoted_trial(study: optuna.Study, spec: ResolvedStudy, *, closing: bool) -> FrozenTrial | None:
    """The paused trial of a study that continues next (:func:`next_promotion`)."""
    view = PositionView(study).get_trials(deepcopy=False) if spec.promotions else []
    trials = {trial.number: trial for trial in view if not is_baseline(trial)}
    steps = [kimg_to_images(kimg) for kimg, _ in spec.promotions]
    levels = losses_at_levels(list(trials.values()), spec)
    chosen = next_promotion(
        [(losses, keep) for losses, (_, keep) in zip(levels, spec.promotions, strict=False)],
        {at: steps.index(step) for at, trial in trials.items() if (step := paused_at(trial)) is not None},
        closing=closing,
        gone=[at for at, trial in trials.items() if trial.state == TrialState.PRUNED],
    )
    return None if chosen is None else trials[chosen]


def promotion_bars(study: optuna.Study, spec: ResolvedStudy) -> dict[int, float]:
    """For the step of each rung: the worst loss that continues from it, once no new trial will start."""
    trials = [trial for trial in PositionView(study).get_trials(deepcopy=False) if not is_baseline(trial)]
    gone = {trial.number for trial in trials if trial.state == TrialState.PRUNED}
    bars = {}
    for losses, (kimg, keep) in zip(losses_at_levels(trials, spec), spec.promotions, strict=False):
        chosen = sorted(loss for trial, loss in losses.items() if trial not in gone)[: -(-len(losses) // keep)]
        if chosen:
            bars[kimg_to_images(kimg)] = chosen[-1]
    return bars


def is_baseline(trial: FrozenTrial) -> bool:
    """Whether it trains a published recipe in full, outside the search."""
    return bool(TrialAttrs.parse(trial.user_attrs).recipe)


def paused_at(trial: FrozenTrial) -> int | None:
    """The step of the rung at which it waits to be promoted."""
    return TrialAttrs.parse(trial.user_attrs).paused_at if trial.state == TrialState.WAITING else None


def losses_at_levels(trials: Sequence[FrozenTrial], spec: ResolvedStudy) -> list[dict[int, float]]:
    """Losses at each rung and final losses, by position, without failed and diverged trials.

    With several objectives a trial's loss is the share of trials of that level that dominate it.

    Args:
        trials: one for each position, which is its number.
        spec: the study's.
    """
    objectives = spec.objectives or ("score",)
    valid = [t for t in trials if t.state != TrialState.FAIL and not TrialAttrs.parse(t.user_attrs).diverged]
    levels = []
    for rung, _ in spec.promotions:
        known = {t.number: rung_losses(t, kimg_to_images(rung), timed="seconds" in objectives) for t in valid}
        levels.append(_as_one({number: losses for number, losses in known.items() if losses is not None}))
    ended = [trial for trial in valid if trial.state == TrialState.COMPLETE and trial.values]
    return [*levels, _as_one({trial.number: as_losses(trial.values, objectives) for trial in ended})]


def _as_one(losses: dict[int, tuple[float, ...]]) -> dict[int, float]:
    """One loss for each trial: its only one, or the share of other trials that dominate it."""
    if all(len(each) == 1 for each in losses.values()):
        return {number: each[0] for number, each in losses.items()}
    return {
        number: dominated_share(own, [other for key, other in losses.items() if key != number])
        for number, own in losses.items()
    }
