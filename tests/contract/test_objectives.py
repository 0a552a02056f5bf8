"""Several objectives in the database: which way each goes, who is pruned, and who learns from it."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from harness.findings.ranking import pareto_front
from harness.home import Home
from harness.spec.files import parse_study
from harness.spec.resolved import suggest
from harness.store.studies import open_study, study_to_record
from harness.store.trials import Trials
from harness.sweep.objective import report
from tests.conftest import TINY_STUDY

SPEC = parse_study("tiny", 'objectives = ["score", "seconds", "recall"]\n' + TINY_STUDY, shown_as="tiny.toml")


@pytest.fixture
def trials(database, tmp_path) -> Trials:
    home = Home(tmp_path / "runs")
    return Trials(open_study(SPEC, home), SPEC, home)


class Timed:
    """An attempt that has trained for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.watched = seconds, {}

    def trained_s(self, until_kimg: float) -> float:
        return self.seconds


def at_rung(trials: Trials, score: float, seconds: float) -> optuna.Trial:
    trial = trials.ask(99)
    suggest(trial, SPEC)
    report(trial, score, 100, SPEC, Timed(seconds))
    return trial


def test_each_objective_goes_its_way_and_all_values_are_kept(trials):
    assert trials.study.directions == [StudyDirection.MINIMIZE, StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    for score, seconds, recall in ((5.0, 9.0, 0.5), (7.0, 3.0, 0.4), (8.0, 4.0, 0.4), (9.0, 9.0, 0.9)):
        trial = at_rung(trials, score, seconds)
        trial.set_user_attr("protocol_hash", "same")
        trials.end(trial, TrialState.COMPLETE, [score, seconds, recall], "")
    record = study_to_record(trials.study)
    assert [trial.value for trial in record.trials] == [5.0, 7.0, 8.0, 9.0]
    assert record.trials[1].values == (7.0, 3.0, 0.4)
    assert [trial.number for trial in pareto_front(record)] == [0, 1, 3]  # 2 is nowhere better than 1
    assert record.best.number == 0


def test_the_front_at_a_rung_is_never_pruned_and_what_many_dominate_is(trials):
    for score, seconds in ((10, 5), (11, 4), (12, 3), (13, 2)):
        trials.end(at_rung(trials, score, seconds), TrialState.COMPLETE, [score, seconds, 0.5], "")
    quickest = at_rung(trials, 99, 1)  # by its score alone it would go
    assert not trials.should_prune(quickest)
    trials.end(quickest, TrialState.COMPLETE, [99, 1, 0.5], "")
    dominated = at_rung(trials, 14, 6)
    assert trials.should_prune(dominated)
    trials.end(dominated, TrialState.PRUNED, None, "")
    assert study_to_record(trials.study).trials[-1].values == ()


def test_seconds_that_nobody_searches_for_save_no_trial(database, tmp_path):
    home, text = Home(tmp_path / "runs"), f'objectives = ["score", "recall"]\n{TINY_STUDY}'
    spec = parse_study("tiny", text, shown_as="tiny.toml")
    trials = Trials(open_study(spec, home), spec, home)
    for score, seconds in ((10, 5), (11, 4), (12, 3)):
        trials.end(at_rung(trials, score, seconds), TrialState.COMPLETE, [score, 0.5], "")
    best = at_rung(trials, 9, 99)  # the slowest
    assert not trials.should_prune(best), "the front of the score alone is its best"
    trials.end(best, TrialState.COMPLETE, [9, 0.5], "")
    assert trials.should_prune(at_rung(trials, 99, 1)), "the quickest, which is on a front with seconds only"


def test_one_objective_alone_is_pruned_by_its_score(database, tmp_path):
    home, spec = Home(tmp_path / "runs"), parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")
    alone = Trials(open_study(spec, home), spec, home)
    for score in (10.0, 11.0):
        trial = alone.ask(9)
        suggest(trial, spec)
        report(trial, score, 100, spec)
        alone.end(trial, TrialState.COMPLETE, [score], "")
    worst = alone.ask(9)
    suggest(worst, spec)
    report(worst, 99.0, 100, spec)
    assert "rung_seconds" not in worst.user_attrs
    assert alone.should_prune(worst)


@pytest.mark.parametrize("objectives", ["", 'objectives = ["score", "recall"]\n'])
def test_a_trial_is_judged_beside_those_that_still_run(database, tmp_path, objectives):
    """Of trials that begin together none has finished when the first come to a rung."""
    text = (objectives + TINY_STUDY).replace('name = "median"\nn_startup', 'name = "percentile"\nn_startup')
    spec = parse_study("tiny", text, shown_as="tiny.toml")
    trials = Trials(open_study(spec, home := Home(tmp_path / "runs")), spec, home)
    good, fair, late, bad = (trials.ask(9) for _ in range(4))
    for trial in (good, fair, late, bad):
        suggest(trial, spec)
    for trial, score in ((good, 10.0), (fair, 11.0)):
        report(trial, score, 100, trials.spec, Timed(1))
        assert not trials.should_prune(trial), "two others must have come as far: n_startup_trials"
    report(bad, 99.0, 100, trials.spec, Timed(1))
    assert trials.should_prune(bad)
    assert not trials.should_prune(good)
    report(fair, 9.0, 200, trials.spec, Timed(2))
    assert not trials.should_prune(fair), "none other has come to this rung"
    report(late, 9.5, 100, trials.spec, Timed(1))
    assert not trials.should_prune(late), "the best of four at its rung"


@pytest.mark.parametrize("pruner", ["median", "percentile", "successive_halving", "none"])
def test_every_pruner_and_tpe_go_on_with_pruned_trials_among_them(database, tmp_path, pruner):
    text = f'objectives = ["score", "seconds"]\n{TINY_STUDY}'.replace('name = "median"', f'name = "{pruner}"')
    spec = parse_study("tiny", text, shown_as="tiny.toml")
    trials = Trials(open_study(spec, home := Home(tmp_path / "runs")), spec, home)
    rng, ended = np.random.default_rng(0), []
    for _ in range(14):
        trial = trials.ask(99)
        hp = suggest(trial, spec)  # from the third on by TPE
        score, seconds = 10 + abs(np.log10(hp.lr_g) + 3) + rng.uniform(), hp.batch_size * rng.uniform(0.9, 1.1)
        report(trial, score, 100, trials.spec, Timed(seconds))
        if trials.should_prune(trial):
            trials.end(trial, TrialState.PRUNED, None, "")
            ended.append("pruned")
        else:
            trials.end(trial, TrialState.COMPLETE, [score, seconds * 4], "")
            ended.append("finished")
    assert ("pruned" in ended) == (pruner != "none")
    assert trials.is_done(14)


def test_a_trial_that_diverged_is_on_no_front_and_in_nobodys_way(trials):
    bad = trials.ask(9)
    suggest(bad, SPEC)
    report(bad, 1e4, 50, trials.spec)  # without seconds: there was no rung
    trials.end(bad, TrialState.PRUNED, None, "diverged: …")
    good = at_rung(trials, 10, 5)
    assert not trials.should_prune(good)
    trials.end(good, TrialState.COMPLETE, [10, 5, 0.5], "")
    assert [trial.number for trial in pareto_front(study_to_record(trials.study))] == [1]
