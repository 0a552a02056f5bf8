"""What more trials would bring, against brute force and against what they brought."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report.outlook import expected_best, new_best_probability, outlook
from tests.unit.test_report import record, trial

VALUES = st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=1, max_size=8)


@given(VALUES)
def test_the_expected_best_is_the_mean_over_every_draw(values):
    found = expected_best(values)
    for k in range(1, len(values) + 1):
        assert found[k - 1] == pytest.approx(np.mean([min(drawn) for drawn in combinations(values, k)]), abs=1e-9)


@given(st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=2, max_size=300))
def test_it_only_falls_and_ends_at_the_best(values):
    found = expected_best(values)
    assert (np.diff(found) <= 1e-9 * 1e3).all()
    assert found[-1] == pytest.approx(min(values), abs=1e-6)
    assert found[0] == pytest.approx(np.mean(values), abs=1e-6)


def test_the_probability_of_a_new_best_is_how_often_there_is_one():
    rng = np.random.default_rng(0)
    drawn = rng.exponential(size=(4000, 15))
    seen = (drawn.argmin(axis=1) >= 10).mean()
    assert new_best_probability(10, 5) == pytest.approx(seen, abs=0.025)


def test_pruned_trials_count_as_no_better_than_the_worst_and_recipes_not_at_all():
    trials = [trial(i, value=v) for i, v in enumerate((60.0, 40.0, 50.0))]
    trials += [trial(i, "PRUNED", 10.0) for i in range(3, 6)]
    found = outlook(record(*trials), 6)
    assert len(found.expected) == 6
    assert found.expected[0] == pytest.approx((60 + 40 + 50 + 3 * 60) / 6)
    assert found.expected[-1] == 40.0
    assert found.probability == 0.5
    assert found.gain == pytest.approx(found.expected[2] - found.expected[5])
    assert all(low <= high for low, high in zip(found.low, found.high, strict=True))
    recipe = dataclasses.replace(trials[0], number=9, value=1.0, attrs={**trials[0].attrs, "recipe": "r"})
    assert outlook(record(*trials, recipe), 6) == found


def test_too_little_is_no_outlook():
    assert outlook(record(*(trial(i, value=50.0 + i) for i in range(5))), 20) is None
    assert outlook(record(trial(0, value=50.0), *(trial(i, "PRUNED", 9.0) for i in range(1, 9))), 20) is None
