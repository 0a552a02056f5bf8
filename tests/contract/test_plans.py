"""What plans promise, on SQLite and on PostgreSQL: nothing is searched, nothing is missing, nothing is forgotten."""

from __future__ import annotations

from collections import Counter

import pytest
from optuna.trial import TrialState

from harness.errors import SpecDrift
from harness.gan.hparams import HParams
from harness.home import Home
from harness.machine.processes import this_process
from harness.spec.fixed_study import fixed_study
from harness.store.studies import open_study
from harness.store.trials import KILLED, Trials
from tests.contract.test_trials import SPEC

GONE = {**this_process(), "start": "1"}
ARMS = {"a": SPEC.hparams({"lr": 1e-3}), "b": SPEC.hparams({"lr": 2e-3})}


def planned(arms: dict[str, HParams] = ARMS, seeds=(5, 6), **changes):
    return fixed_study(SPEC, "claims", arms=arms, seeds=seeds, **changes)


def opened(home: Home, spec=None) -> Trials:
    spec = spec or planned()
    return Trials(open_study(spec, home), spec, home)


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "runs")


def test_every_arm_takes_the_first_seed_before_any_takes_the_second_and_then_there_is_none(database, home):
    trials = opened(home)
    asked = [trials.ask(9) for _ in range(4)]
    assert [(t.user_attrs["arm"], t.user_attrs["training_seed"]) for t in asked] == [
        ("a", 5), ("b", 5), ("a", 6), ("b", 6),
    ]  # fmt: skip
    assert trials.ask(9) is None, "nothing is searched, whatever the target"
    assert not trials.is_done(9)
    for trial in asked[:3]:
        trials.end(trial, TrialState.COMPLETE, 1.0, "")
    trials.end(asked[3], TrialState.FAIL, None, "RuntimeError: of its own")
    assert trials.is_done(9)


def test_an_arm_that_failed_for_good_is_planned_again_by_the_next_start_once(database, home):
    trials = opened(home)
    for _ in range(4):
        trial = trials.ask(4)
        failed = (trial.user_attrs["arm"], trial.user_attrs["training_seed"]) == ("b", 5)
        trials.end(trial, TrialState.FAIL if failed else TrialState.COMPLETE, None if failed else 1.0, "")
    for _ in range(2):
        again = opened(home)
    waiting = again.study.get_trials(states=(TrialState.WAITING,))
    assert [(t.user_attrs["arm"], t.user_attrs["training_seed"]) for t in waiting] == [("b", 5)]


def test_a_killed_training_is_continued_with_its_seed_and_not_planned_twice(database, home):
    trials = opened(home)
    trial = trials.ask(4)
    trial.set_user_attr("hparams", ARMS["a"].to_dict())
    trial.set_user_attr("worker", GONE)
    opened(home)
    assert trials.heal() == [f"trial 0: {KILLED}", "trial 0: queued to continue"]
    again = opened(home).ask(4)
    assert (again.user_attrs["retry_of"], again.user_attrs["arm"], again.user_attrs["training_seed"]) == (0, "a", 5)
    counts = Counter(t.user_attrs["preset"] for t in trials.study.get_trials())
    assert counts == {"a-seed-0": 2, "b-seed-0": 1, "a-seed-1": 1, "b-seed-1": 1}


def test_a_plan_grows_by_arms_and_seeds_and_keeps_what_it_has(database, home):
    first = planned()
    opened(home, first)
    more = planned({"c": SPEC.hparams({"lr": 3e-3})}, (5, 6, 7), known=first.presets, claims={"new": "{}"})
    assert more.budget.trials == 7
    trials = opened(home, more)
    assert len(trials.study.get_trials()) == 7


def test_what_somebody_asked_for_is_trained_though_another_asked_for_less_meanwhile(database, home):
    trials = opened(home, planned())
    for _ in range(3):
        taken = trials.ask(2)
        trials.end(taken, TrialState.COMPLETE, 1.0, "")
    assert not trials.is_done(2)
    trials.end(trials.ask(2), TrialState.COMPLETE, 1.0, "")
    assert trials.ask(2) is None and trials.is_done(2)


def test_a_plan_of_a_search_that_was_restarted_is_refused(database, home):
    arms = {"a": SPEC.hparams({"lr": 1e-3})}
    opened(home, fixed_study(SPEC, "confirm", arms=arms, seeds=(5,)))  # by a harness that did not write it down
    opened(home, fixed_study(SPEC, "confirm", arms=arms, seeds=(5,), uid="first"))
    with pytest.raises(SpecDrift, match="plan.uid: was 'first', is 'second'") as refused:
        opened(home, fixed_study(SPEC, "confirm", arms=arms, seeds=(5,), uid="second"))
    assert refused.value.hint.startswith("The search was restarted")


def test_another_budget_and_a_claim_that_changed_are_refused(database, home):
    opened(home, planned(claims={"one": "{}"}))
    with pytest.raises(SpecDrift, match="plan.claims.one"):
        opened(home, planned(claims={"one": '{"says":"same"}'}))
    longer = SPEC.model_copy(update={"budget": SPEC.budget.model_copy(update={"kimg": 0.8})})
    with pytest.raises(SpecDrift, match=r"budget\.kimg: was 0\.4, is 0\.8"):
        opened(home, fixed_study(longer, "claims", arms=ARMS, seeds=(5, 6), claims={"one": "{}"}))
