"""Promotion and the order of merit as pure functions."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from harness.store.promotion import merits, next_promotion, order_of_merit

losses = st.floats(1.0, 500.0)


@st.composite
def levels(draw):
    """Losses at one to four levels, each level's trials among those of the one before."""
    trials = list(range(draw(st.integers(1, 12))))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        found.append({trial: draw(losses) for trial in trials})
        trials = [trial for trial in trials if draw(st.booleans())]
    return found


def furthest(found, trial):
    return max(index for index, level in enumerate(found) if trial in level)


@given(levels(), st.randoms(use_true_random=False))
def test_the_order_in_which_trials_are_told_does_not_matter(found, rng: random.Random):
    shuffled = []
    for level in found:
        items = list(level.items())
        rng.shuffle(items)
        shuffled.append(dict(items))
    assert order_of_merit(shuffled) == order_of_merit(found)


@given(levels())
def test_every_trial_has_one_place_and_one_value(found):
    order = order_of_merit(found)
    assert sorted(order) == sorted(found[0])
    values = merits(found)
    assert sorted(values, key=values.__getitem__) == order
    assert all(math.isfinite(value) for value in values.values())


@given(levels())
def test_of_two_trials_with_the_same_furthest_level_the_better_there_ranks_first(found):
    order = order_of_merit(found)
    for one in found[0]:
        for other in found[0]:
            last = furthest(found, one)
            if last == furthest(found, other) and found[last][one] < found[last][other]:
                assert order.index(one) < order.index(other)


@given(levels(), st.data())
def test_a_better_score_at_its_furthest_level_never_ranks_a_trial_worse(found, data):
    trial = data.draw(st.sampled_from(sorted(found[0])))
    last = furthest(found, trial)
    before = order_of_merit(found).index(trial)
    found[last][trial] = data.draw(st.floats(0.1, found[last][trial]))
    assert order_of_merit(found).index(trial) <= before


def run(scores, keep, target):
    """A whole study with one worker and no training: (trial, rung) as they are scored, finals as the last rung."""
    rungs = [{} for _ in keep]
    paused, finals, went = {}, [], []
    while True:
        closing = len(rungs[0]) == target
        trial = next_promotion(list(zip(rungs, keep, strict=True)), paused, closing=closing)
        if trial is None and closing:
            return went, finals
        if trial is None:
            trial, at = len(rungs[0]), 0
        else:
            at = paused.pop(trial) + 1
        went.append((trial, at))
        if at and not closing:
            promoted = sum(place == at for _, place in went)
            assert promoted <= len(rungs[at - 1]) // keep[at - 1], "no more than its share before the end"
        if at == len(keep):
            finals.append(trial)
        else:
            rungs[at][trial] = scores[trial][at]
            paused[trial] = at


@given(st.integers(1, 40), st.lists(st.integers(2, 9), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_a_whole_study_ends_with_a_final_score_and_every_rung_keeps_its_share(n, keep, rng):
    scores = [[rng.random() for _ in keep] for _ in range(n)]
    went, finals = run(scores, keep, n)
    assert finals
    came = [sum(at == index for _, at in went) for index in range(len(keep) + 1)]
    assert came[0] == n
    for index, factor in enumerate(keep):
        assert came[index + 1] >= math.ceil(came[index] / factor)
    best = min(range(n), key=lambda trial: scores[trial][0])
    assert (best, 1) in went, "the best of the first rung always goes on"


def test_the_furthest_goes_first_and_none_goes_that_is_not_among_the_best():
    first = {trial: float(trial) for trial in range(8)}
    rungs = [(first, 4), ({0: 3.0, 1: 2.0}, 2)]
    assert next_promotion(rungs, {0: 1, 1: 1, 2: 0, 3: 0}, closing=False) == 1
    assert next_promotion(rungs, {0: 1, 2: 0, 3: 0}, closing=False) is None, "1 in 2, 2 in 8 are on their way already"
    waiting = dict.fromkeys(range(1, 8), 0)
    assert next_promotion([(first, 4), ({}, 2)], waiting, closing=False) == 1


def test_a_trial_that_only_came_among_the_best_after_others_were_promoted_waits():
    first = {trial: float(trial) for trial in range(8)}
    waiting = dict.fromkeys((0, 2, 4, 5, 6, 7), 0)
    assert next_promotion([(first, 4)], waiting, closing=False) is None, "1 and 3 were promoted: 2 in 8"
    assert next_promotion([(first, 4)], waiting, closing=True) == 0
    waiting[1] = 0
    assert next_promotion([(first, 4)], waiting, closing=False) == 0, "only 3 was promoted"
    del waiting[0]
    assert next_promotion([(first, 4)], waiting, closing=False, gone=[3]) == 1, "3 was pruned, 0 was promoted"


def test_the_last_ones_are_rounded_up_and_the_nearest_goes_first():
    first = {trial: float(trial) for trial in range(9)}
    rungs = [(first, 4), ({0: 3.0}, 2)]
    waiting = {0: 1, 1: 0, 2: 0, 3: 0}
    assert next_promotion(rungs, waiting, closing=True) == 1
    del waiting[1]
    assert next_promotion(rungs, waiting, closing=True) == 2, "⌈9 / 4⌉ = 3"
    del waiting[2]
    assert next_promotion(rungs, waiting, closing=True) == 0, "⌈1 / 2⌉ = 1"
    assert next_promotion(rungs, {3: 0}, closing=True) is None
    assert next_promotion(rungs, {0: 1}, closing=False) is None
