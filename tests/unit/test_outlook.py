"""What more trials would bring, against brute force and against what they brought."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.commands import studies
from harness.home import Home
from harness.report.outlook import expected_best, new_best_probability, outlook
from harness.study.files import parse_study
from harness.sweep import plan
from tests.conftest import TINY_STUDY
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


@pytest.mark.parametrize(("cores", "workers", "sooner"), [(4, 1, 1), (4, 2, 2), (4, 8, 4), (1, 8, 1)])
def test_as_many_trials_at_once_as_there_are_workers_with_cores(monkeypatch, cores, workers, sooner):
    monkeypatch.setattr(plan, "usable_cores", lambda: cores)
    spec = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml").model_copy(update={"presets": ()})
    measured = [
        plan.Measured(name="random 1", s_per_kimg=1000.0, s_per_sample=0.5, parameters=1, generator_parameters=1,
                      baseline=False)
    ]  # fmt: skip
    rates = {("inception-v3", "float32"): 0.1, ("mobilenet-v2", "float32"): 1.0}
    text = plan._time(spec, measured, rates, 8, torch.device("cpu"), workers)
    # 400 s of training; 20 samples at each of two rungs and 20 at the end; 24 real images for either extractor, once.
    trial = 400 + 2 * 20 * (1 + 0.5) + 20 * (10 + 0.5)
    once = 24 * 10 + 24 * 1
    assert text.startswith(f"about {plan._shown(8 * trial / sooner + once)} on this cpu")
    assert (f"{sooner} trials at once" in text) == (sooner > 1)


def test_a_started_studys_own_trials_say_how_long_the_rest_takes(monkeypatch):
    ended = [
        dataclasses.replace(trial(i, value=50.0 + i), attrs={**trial(i).attrs, "elapsed_s": 100.0}) for i in range(3)
    ]
    started = record(*ended)
    started = dataclasses.replace(started, attrs={**started.attrs, "target": 10})
    monkeypatch.setattr("harness.sweep.storage.find_record", lambda name, home: started)
    first, *_ = studies.outlook_lines("tiny", Home(Path("nowhere")), 20)
    assert first.startswith(
        "so far: 3 trials, pruned ones included, took 100 s each; the 7 that are left take 11.7 min"
    )
