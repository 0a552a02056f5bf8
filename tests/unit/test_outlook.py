"""What more trials would bring, against brute force and against what they brought."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from harness.findings.outlook import (
    chance,
    expected_best,
    new_best_probability,
    outlook,
    outlook_lines,
    too_few,
)
from harness.forecast import forecast
from harness.forecast.forecast import Forecast, earliest_rungs, mean_work
from harness.forecast.speed import ConfigurationSpeed, ScoringTime, measure_training, scoring_time, tensor_bytes
from harness.home import Home
from harness.spec.files import parse_study
from harness.spec.resolved import ResolvedPreset
from harness.spec.study import PrunerSpec
from harness.spec.tables import ScoreSpec, ScoringSpec
from harness.store.samplers import kimg_to_images
from harness.store.studies import find_record, open_study
from harness.store.trials import Trials
from harness.text import duration
from harness.training.checkpoint import save_checkpoint
from tests.conftest import CPU, TINY_STUDY
from tests.unit.test_report import record, trial

VALUES = st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=1, max_size=8)


@given(VALUES)
def test_the_expected_best_is_the_mean_over_every_draw(values):
    found = expected_best([values])[0]
    for k in range(1, len(values) + 1):
        assert found[k - 1] == pytest.approx(np.mean([min(drawn) for drawn in combinations(values, k)]), abs=1e-9)


@given(st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=2, max_size=300))
def test_it_only_falls_and_ends_at_the_best(values):
    found = expected_best([values])[0]
    assert (np.diff(found) <= 1e-9 * 1e3).all()
    assert found[-1] == pytest.approx(min(values), abs=1e-6)
    assert found[0] == pytest.approx(np.mean(values), abs=1e-6)


def test_the_expected_best_of_many_values_is_the_closed_form():
    """Of k of the numbers 1 to n: (n + 1) / (k + 1). Samples are independent of each other."""
    n = 3000
    first, second = expected_best([np.arange(n, 0.0, -1), 7.0 - np.arange(1.0, n + 1)])
    k = np.arange(1, n + 1)
    assert first == pytest.approx((n + 1) / (k + 1), rel=1e-9)
    assert second == pytest.approx(7.0 - (n + 1) * k / (k + 1), rel=1e-9)


def test_the_probability_of_a_new_best_is_how_often_there_is_one():
    rng = np.random.default_rng(0)
    drawn = rng.exponential(size=(4000, 15))
    seen = (drawn.argmin(axis=1) >= 10).mean()
    assert new_best_probability(10, 5) == pytest.approx(seen, abs=0.025)


SCORES = (60.0, 40.0, 50.0, 55.0, 45.0, 58.0, 52.0, 48.0)
SEARCHED = [trial(i, value=value) for i, value in enumerate(SCORES)]


def test_pruned_trials_count_as_the_worst_searched_one_and_presets_not_at_all():
    trials = [*SEARCHED, *(trial(i, "PRUNED", 10.0) for i in range(8, 12))]
    found = outlook(record(*trials), 12)
    assert len(found.expected) == 12
    assert found.expected[0] == pytest.approx((sum(SCORES) + 4 * 60) / 12)
    assert found.expected[-1] == 40.0
    assert found.fewer == 6
    assert "about 50 % (12/(12 + 12): 12 were searched so far). " in found.sentences
    assert found.gain == pytest.approx(found.expected[5] - found.expected[11])
    assert all(low <= high for low, high in zip(found.low, found.high, strict=True))
    fixed = ({"recipe": "r"}, {"preset": "paper"}, {"preset": "small-batch"})
    others = [
        trial(20 + i, value=value, attrs=attrs)
        for i, (value, attrs) in enumerate(zip((1.0, 99.0, 2.0), fixed, strict=True))
    ]
    gone = trial(30, "PRUNED", 10.0, attrs={"preset": "paper"})
    assert outlook(record(*trials, *others, gone), 12) == found
    assert not too_few(record(*trials))


def test_too_little_is_no_outlook_and_it_says_why():
    few = record(
        *SEARCHED[:7], trial(8, value=1.0, attrs={"preset": "paper"}), *(trial(i, "PRUNED", 9.0) for i in (9, 10))
    )
    assert outlook(few, 20) is None
    assert too_few(few) == (
        "too few finished trials: 8 with a final score of the same protocol are needed, presets and pruned ones not "
        "counted, and there are 7"
    )
    assert chance(few, 3) == (
        "3 more trials would find a new best with a probability of about 25 % (3/(9 + 3): 9 were searched so "
        "far), if no pruned trial would have been the best; how much better is unknown"
    )
    assert chance(None, 3) == chance(record(trial(8, value=1.0, attrs={"preset": "paper"})), 3) == ""
    assert too_few(None).endswith("and there are none")
    assert too_few(record(SEARCHED[0])).endswith("and there is 1")


def test_its_words_give_the_probability_with_its_sum_and_no_promise_of_a_gain():
    *_, best, new = outlook_lines(record(*SEARCHED, *(trial(i, "PRUNED", 9.0) for i in range(8, 12))), 20)
    assert best.startswith("the best FID of 500 images to expect of fewer of the 12 searched trials")
    assert best.endswith("40 of 12")
    assert "a new best with a probability of about 62 % (20/(12 + 20): 12 were searched so far). " in new
    assert "unknown; from 4 trials to 12 the expected best fell by" in new


SPEC = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml").model_copy(update={"presets": ()})
MEASURED = [
    ConfigurationSpeed(name="random 1", s_per_kimg=1000.0, s_per_sample=0.5, parameters=1, checkpoint_bytes=2_000_000,
                   weights_bytes=500_000, baseline=False)
]  # fmt: skip
SCORING = ScoringTime(rung_s=30.0, final_s=200.0, again_s=100.0, references_s=50.0)
FULL_S, FIRST_RUNG_S = 400 + 2 * 30 + 200, 100 + 30  # 0.4 kimg, a rung at 0.1 and one at the end


def forecast_of(spec=SPEC, target=8, workers=1) -> Forecast:
    return Forecast(spec=spec, configurations=MEASURED, scoring=SCORING, target=target, device="cpu", workers=workers)


def time_of(spec=SPEC, target=8, workers=1, own=None):
    return forecast_of(spec, target, workers).time(own)


@pytest.mark.parametrize(("cores", "workers", "sooner"), [(4, 1, 1), (4, 2, 2), (4, 8, 4), (1, 8, 1)])
def test_as_many_trials_at_once_as_there_are_workers_with_cores(monkeypatch, cores, workers, sooner):
    monkeypatch.setattr(forecast, "usable_cores", lambda: cores)
    text = time_of(workers=workers)
    assert text.startswith(f"about {duration(8 * FULL_S / sooner + 50)} at most on this cpu")
    assert (f"{sooner} trials at once" in text) == (sooner > 1)


def test_without_trials_of_its_own_a_study_has_both_bounds_of_pruning():
    least = duration(2 * FULL_S + 6 * FIRST_RUNG_S + 50)  # the median of two finished trials is waited for
    assert f"(nothing pruned), {least} at least (all but 2 pruned at the first rung)" in time_of()
    halving = SPEC.model_copy(update={"pruner": PrunerSpec(name="successive_halving")})
    assert "(all but 1 pruned at the first rung)" in time_of(halving)
    unpruned = SPEC.model_copy(update={"pruner": PrunerSpec(name="none")})
    assert time_of(unpruned).startswith(f"about {duration(8 * FULL_S + 50)} on this cpu, nothing is pruned")


@pytest.mark.parametrize("pruner", ["hyperband", "successive_halving", "median", "percentile"])
def test_the_least_is_what_is_trained_where_each_trial_is_worse_than_all_before_it(tmp_path, pruner):
    budget = SPEC.budget.model_copy(update={"kimg": 2.7, "rungs": (0.1, 0.3, 0.9)})
    spec = SPEC.model_copy(update={"budget": budget, "pruner": PrunerSpec(name=pruner, n_startup_trials=2)})
    home = Home(tmp_path / "runs")
    trials = Trials(open_study(spec, home), spec, home)
    ended: list[float | None] = []
    for value in range(30):
        found, pruned_at = trials.ask(99), None
        for rung in budget.rungs:
            found.report(float(value), kimg_to_images(rung))
            if trials.should_prune(found):
                pruned_at = rung
                break
        trials.end(found, TrialState.PRUNED if pruned_at else TrialState.COMPLETE, None if pruned_at else value, "")
        ended.append(pruned_at)
    assert earliest_rungs(spec, 30) == ended
    assert len(set(ended)) == (4 if pruner == "hyperband" else 2)


def test_recipes_are_never_pruned_in_either_bound():
    recipes = tuple(ResolvedPreset(name=f"r{i}", params={}, overrides={}, recipe="r") for i in range(3))
    text = time_of(SPEC.model_copy(update={"presets": recipes}))
    least = duration(3 * FULL_S + 5 * FIRST_RUNG_S + 50)
    assert f"{least} at least (all but 3 pruned at the first rung)" in text
    # Halving compares with what it judged itself: the first that it judges goes on.
    halving = SPEC.model_copy(update={"pruner": PrunerSpec(name="successive_halving"), "presets": recipes})
    assert "(all but 4 pruned at the first rung)" in time_of(halving)


def test_every_further_sampling_seed_scores_a_finished_trial_again():
    scoring = SPEC.scoring.model_copy(update={"sampling_seeds": 3})
    text = time_of(SPEC.model_copy(update={"scoring": scoring}))
    assert text.startswith(f"about {duration(8 * (FULL_S + 2 * 100) + 50)} at most")


def test_a_started_studys_own_trials_say_what_pruning_saves():
    spec = SPEC.model_copy(update={"budget": SPEC.budget.model_copy(update={"kimg": 27.0, "rungs": (3.0, 9.0)})})
    done = trial(0, value=50.0)
    early, late = (
        trial(i, "PRUNED", 9.0, intermediate=steps) for i, steps in ((1, {3000: 9.0}), (2, {3000: 9.0, 9000: 9.0}))
    )
    recipe = trial(3, value=1.0, attrs={"recipe": "r"})
    assert mean_work(spec, record(done, early, recipe)) is None
    assert mean_work(SPEC, record(done, early, late)) is None, "trials of another length"
    own = mean_work(spec, record(done, early, late, recipe))
    assert own.trained == pytest.approx((27 + 3 + 9) / 81)
    assert (own.rungs, own.scored) == (pytest.approx((3 + 1 + 2) / 3), pytest.approx(1 / 3))
    text = time_of(own=own)
    assert text.startswith(f"about {duration(8 * (own.trained * 400 + own.rungs * 30 + own.scored * 200) + 50)} on")
    assert "trials other than recipes trained 48 % of a full length on average" in text


def test_looking_for_a_study_that_was_not_started_creates_no_database(monkeypatch, tmp_path):
    monkeypatch.delenv("HARNESS_STORAGE", raising=False)
    assert find_record("tiny", Home(tmp_path / "runs")) is None
    assert not list(tmp_path.iterdir())


def test_disk_counts_mlflows_copies_where_they_are_kept_here(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(Path("nowhere"))
    text = forecast_of(target=100).disk(home, 10**9, 1_000_000)
    # 2.5 MB of models and three grids, twice, and the last grid once more; the reference features are next to nothing.
    assert text.startswith("2.20 GB in nowhere at most: images 1.00 GB")
    assert "100 trials of 5.5 MB (checkpoint, weights, sample grids) and 6.5 MB of copies for MLflow" in text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert forecast_of(target=100).disk(home, 10**9, 1_000_000).startswith("1.55 GB")


def test_a_probe_measures_the_checkpoint_that_a_training_writes(hp, images, tmp_path):
    rate, snapshot = measure_training(dataclasses.replace(hp, ngf=32, ndf=32), images, CPU)
    assert rate > 0
    save_checkpoint(tmp_path / "c", snapshot.state)
    assert tensor_bytes(snapshot.state) == pytest.approx((tmp_path / "c").stat().st_size, rel=0.05)


def test_a_score_is_timed_with_its_algebra(tmp_path):
    score = ScoreSpec(samples=60, reference=60, extractor="mobilenet-v2")
    spec = SPEC.model_copy(update={"scoring": ScoringSpec(final=score, rung=score, sampling_seeds=2)})
    found = scoring_time(spec, Home(tmp_path), {("mobilenet-v2", "float32"): 1e9}, 0.0, CPU)
    # The images cost nothing here: what is left is algebra.
    assert min(found.rung_s, found.final_s, found.again_s) > 1e-4
    assert not list(tmp_path.iterdir())


def test_a_started_studys_own_trials_say_how_long_the_rest_takes():
    ended = [
        dataclasses.replace(trial(i, value=50.0 + i), attrs=dataclasses.replace(trial(i).attrs, elapsed_s=100.0))
        for i in range(3)
    ]
    started = record(*ended)
    started = dataclasses.replace(started, attrs=dataclasses.replace(started.attrs, target=10))
    first, *_ = outlook_lines(started, 20)
    assert first.startswith(
        "so far: 3 trials, pruned ones included, took 100 s each; the 7 that are left take 11.7 min"
    )
