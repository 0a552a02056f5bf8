"""Promotion in the database, on SQLite and on PostgreSQL: a paused trial stays itself; none is lost or doubled."""

from __future__ import annotations

import random
from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState

from harness.errors import Fenced, UsageError
from harness.home import Home
from harness.machine.processes import this_process
from harness.spec.files import parse_study
from harness.spec.resolved import suggest
from harness.spec.study import SamplerSpec
from harness.store.optuna_private import id_of
from harness.store.promotion import EARLIER, MeritView, paused_at
from harness.store.records import TrialAttrs
from harness.store.studies import open_study
from harness.store.trials import KILLED, Trials, write_attrs
from tests.conftest import TINY_STUDY
from tests.contract.test_trials import GONE, fails_at

STUDY = TINY_STUDY.replace("rungs = [0.1]", "rungs = [0.1, 0.2]").replace(
    'name = "median"\nn_startup_trials = 2', 'name = "promotion"\nkeep = [4, 2]'
)
SPEC = parse_study("tiny", STUDY, shown_as="tiny.toml")
FIRST, SECOND = 100, 200


def opened(spec, tmp_path) -> Trials:
    home = Home(tmp_path / "runs")
    return Trials(open_study(spec, home), spec, home)


@pytest.fixture
def trials(database, tmp_path) -> Trials:
    return opened(SPEC, tmp_path)


def train(trials: Trials, trial: optuna.Trial, score: float, spec=SPEC) -> str:
    """To its next rung, or to its end, without training."""
    if not trial.params:
        write_attrs(trial, TrialAttrs(hparams=suggest(trial, spec).to_dict()))
    kept = TrialAttrs.parse(trial.user_attrs).kept_at or 0
    step = next((step for step in (FIRST, SECOND) if step > kept), None)
    if step is None:
        trials.end(trial, TrialState.COMPLETE, score, "")
        return f"{trial.number} ends"
    trial.storage.set_trial_intermediate_value(id_of(trial), step, score)
    trials.pause(trial, step)
    return f"{trial.number} at {step}"


def run(trials: Trials, target: int, spec=SPEC) -> list[str]:
    rng, done = random.Random(0), []
    while (trial := trials.ask(target)) is not None:
        done.append(train(trials, trial, rng.random(), spec))
    return done


def frozen(trials: Trials, number: int) -> optuna.trial.FrozenTrial:
    return trials.study.get_trials(deepcopy=False)[number]


def test_a_paused_trial_keeps_parameters_and_scores_and_is_taken_up_again(trials):
    """Optuna does not say that a RUNNING trial may wait again; its storages allow it."""
    trial = trials.ask(9)
    train(trials, trial, 3.0)
    paused = frozen(trials, 0)
    assert (paused.state, paused.intermediate_values) == (TrialState.WAITING, {FIRST: 3.0})
    assert paused.params == trial.params
    assert paused.params
    assert trials.storage.set_trial_state_values(id_of(paused), TrialState.RUNNING)
    assert not trials.storage.set_trial_state_values(id_of(paused), TrialState.RUNNING), "once only"
    again = frozen(trials, 0)
    assert (again.state, again.params, again.intermediate_values) == (
        TrialState.RUNNING, paused.params, paused.intermediate_values,
    )  # fmt: skip


def test_the_best_of_four_is_promoted_when_the_fourth_was_scored_and_the_furthest_goes_first(trials):
    scores = [5.0, 3.0, 4.0]
    for number, score in enumerate(scores):
        trial = trials.ask(99)
        assert trial.number == number, "a new one: of three none may continue"
        train(trials, trial, score)
    train(trials, trials.ask(99), 6.0)
    promoted = trials.ask(99)
    assert promoted.number == 1
    assert TrialAttrs.parse(promoted.user_attrs).kept_at == FIRST
    assert train(trials, promoted, 2.0) == f"1 at {SECOND}"
    assert trials.ask(99).number == 4, "of one at the second rung none may continue yet"


def test_a_study_ends_with_final_scores_and_what_waits_is_pruned_for_a_reason(trials):
    done = run(trials, 10)
    states = Counter(trial.state for trial in trials.study.get_trials())
    assert states[TrialState.COMPLETE] >= 1
    assert states[TrialState.COMPLETE] + states[TrialState.PRUNED] == 10 == len(trials.study.trials)
    assert trials.is_done(10)
    for trial in trials.study.get_trials(states=(TrialState.PRUNED,)):
        why, _, bar = trial.user_attrs["reason"].partition("; the bar was ")
        before = f"paused at {trial.last_step / 1000:g} kimg, and not promoted: "
        assert why.startswith(before)
        assert float(why.removeprefix(before)) >= float(bar), "of ⌈n / keep⌉ at that rung none was worse"
        assert trial.value is None, "its rung scores are not on the final score's axis"
    assert sum(each.endswith(f"at {FIRST}") for each in done) == 10
    assert sum(each.endswith(f"at {SECOND}") for each in done) >= 3, "⌈10 / 4⌉"


def test_a_study_that_is_extended_promotes_among_its_new_trials(trials):
    run(trials, 8)
    done = run(trials, 16)
    assert sum(each.endswith(f"at {FIRST}") for each in done) == 8
    assert len([each for each in done if each.endswith(f"at {SECOND}")]) >= 2
    assert trials.is_done(16)


@pytest.mark.parametrize("killed_in", ["training", "after its score", "while it is paused", "after promotion"])
def test_a_kill_anywhere_changes_nothing_of_what_comes(trials, tmp_path, killed_in):
    spec = SPEC.model_copy(update={"name": "twin"})
    twin = opened(spec, tmp_path)
    expected = [each.split(" ", 1)[1] for each in run(twin, 10)]
    rng, done, kills = random.Random(0), [], 0
    while (trial := trials.ask(10)) is not None:
        if not trial.params:
            write_attrs(trial, TrialAttrs(hparams=suggest(trial, SPEC).to_dict()))
        attrs = TrialAttrs.parse(trial.user_attrs)
        if attrs.retry_of is not None and attrs.kept_at is not None:  # its checkpoint has the score
            score = frozen(trials, attrs.retry_of).intermediate_values[FIRST]
            trial.storage.set_trial_intermediate_value(id_of(trial), FIRST, score)
        promoted = attrs.kept_at is not None and attrs.retry_of is None
        if attrs.retry_of is None and (promoted or killed_in != "after promotion") and kills < 3:
            kills += 1
            if killed_in == "after its score":
                trial.storage.set_trial_intermediate_value(id_of(trial), FIRST, -1.0)  # scored again by the next
            worker = None if killed_in == "while it is paused" else GONE
            write_attrs(trial, TrialAttrs(worker=worker))
            assert trials.heal()[0].endswith(KILLED)
            continue
        done.append(train(trials, trial, rng.random()))
    assert kills == 3
    assert [each.split(" ", 1)[1] for each in done] == expected
    by_place = {t.user_attrs["place"]: t for t in trials.study.trials if t.state != TrialState.FAIL}
    assert {place: (t.params, t.state, t.value) for place, t in by_place.items()} == {
        t.user_attrs["place"]: (t.params, t.state, t.value) for t in twin.study.trials
    }


def test_a_worker_that_was_declared_dead_cannot_pause_its_trial(trials):
    trial = trials.ask(9)
    write_attrs(trial, TrialAttrs(hparams=suggest(trial, SPEC).to_dict(), worker=GONE))
    trials.heal()
    with pytest.raises(Fenced, match="declared dead"):
        trials.pause(trial, FIRST)
    assert frozen(trials, 0).state == TrialState.FAIL


def test_a_pause_whose_answer_was_lost_is_not_taken_from_who_promoted_the_trial_since(trials):
    for score in (1.0, 2.0, 3.0, 4.0):
        trial = trials.ask(9)
        train(trials, trial, score)
        if score == 1.0:
            first = trial
    promoted = trials.ask(9)
    assert promoted.number == 0
    trials.pause(first, FIRST)
    assert frozen(trials, 0).state == TrialState.RUNNING, "it is another worker's now"


def test_an_outage_at_any_statement_loses_no_trial_and_doubles_none(trials):
    rng, at = random.Random(1), 0
    while True:
        at = at % 40 + 1
        end = fails_at(trials.storage, at)
        trial = trials.ask(12)
        end()
        if trial is None:
            break
        end = fails_at(trials.storage, at % 13 + 1)
        train(trials, trial, rng.random())
        end()
        assert not trials.study.get_trials(states=(TrialState.RUNNING,))
    places = Counter(t.user_attrs["place"] for t in trials.study.trials if t.state != TrialState.FAIL)
    assert sorted(places) == list(range(12))
    assert max(places.values()) == 1


def test_what_failed_or_diverged_after_its_promotion_leaves_its_place_to_the_next(trials):
    for score in (1.0, 2.0, 3.0, 4.0):
        train(trials, trials.ask(4), score)
    promoted = trials.ask(4)
    write_attrs(promoted, TrialAttrs(diverged=True))
    trials.end(promoted, TrialState.PRUNED, None, "diverged: loss")
    assert trials.ask(4).number == 1, "so that the study ends with a final score"


def test_a_baseline_is_never_paused_and_takes_nobodys_place(trials):
    for score in (1.0, 2.0, 3.0, 4.0):
        trial = trials.ask(9)
        if score == 1.0:
            write_attrs(trial, TrialAttrs(recipe="udacity32", hparams={"lr": 1}))
            trial.storage.set_trial_intermediate_value(id_of(trial), FIRST, score)
            trials.end(trial, TrialState.COMPLETE, 1.0, "")
        else:
            train(trials, trial, score)
    assert trials.ask(9).number == 4, "three are compared"


class TestSampler:
    def test_each_scored_trial_has_one_value_on_one_scale_and_running_ones_are_there(self, trials):
        for score in (5.0, 1.0, 3.0, 4.0):
            train(trials, trials.ask(9), score)
        train(trials, trials.ask(9), 9.0)  # promoted, at the second rung now
        suggest(trials.ask(9), SPEC)
        view = MeritView(trials.study, SPEC)
        told = view.get_trials()
        assert [t.state.name for t in told] == ["COMPLETE"] * 4 + ["RUNNING"]
        assert sorted(range(4), key=lambda n: told[n].value) == [1, 2, 3, 0]
        assert not any(t.intermediate_values for t in told[:4])

    @pytest.mark.parametrize("name", ["tpe", "gp"])
    @pytest.mark.parametrize("one", [True, False], ids=["one parameter", "several"])
    def test_a_space_whose_first_trials_all_diverge_and_one_with_one_parameter(self, database, tmp_path, name, one):
        sampler = SPEC.sampler.model_copy(update={"name": name, "n_startup_trials": 3})
        space = {"lr": SPEC.space["lr"]} if one else dict(SPEC.space)
        spec = SPEC.model_copy(update={"sampler": sampler, "space": space, "presets": ()})
        trials = opened(spec, tmp_path)
        for _ in range(4):
            trial = trials.ask(99)
            suggest(trial, spec)
            write_attrs(trial, TrialAttrs(diverged=True))
            trial.storage.set_trial_intermediate_value(id_of(trial), 7, 1e4)
            trial.set_constraint("diverged", 1.0)
            trials.end(trial, TrialState.PRUNED, None, "diverged: loss")
        done = run(trials, 12, spec)
        assert any(each.endswith("ends") for each in done)

    def test_a_better_first_half_of_the_range_is_searched_more(self, database, tmp_path):
        sampler = SPEC.sampler.model_copy(update={"n_startup_trials": 8})
        spec = SPEC.model_copy(update={"sampler": sampler, "space": {"lr": SPEC.space["lr"]}, "presets": ()})
        trials = opened(spec, tmp_path)
        while (trial := trials.ask(30)) is not None:
            lr = suggest(trial, spec).lr_g if not trial.params else trial.params["lr"]
            train(trials, trial, lr, spec)
        drawn = [t.params["lr"] for t in trials.study.trials]
        assert sum(lr < 1e-3 for lr in drawn[8:]) > 15, "half of the range in logarithms; random search has 11 there"


class TestWarmStart:
    """A study that begins with an earlier one's trials, where the smaller learning rate is the better."""

    @staticmethod
    def spec(name, *earlier, space=("lr",)):
        sampler = SamplerSpec.model_validate({"seed": 3, "from": earlier or None})
        space = {each: SPEC.space[each] for each in space}
        return SPEC.model_copy(update={"name": name, "sampler": sampler, "space": space, "presets": ()})

    @staticmethod
    def searched(spec, n, tmp_path) -> Trials:
        trials = opened(spec, tmp_path)
        while (trial := trials.ask(n)) is not None:
            lr = trial.params["lr"] if trial.params else suggest(trial, spec).lr_g
            train(trials, trial, lr, spec)
        return trials

    def test_the_first_proposals_are_where_the_earlier_study_was_good(self, database, tmp_path):
        self.searched(self.spec("earlier"), 40, tmp_path)
        first: dict[tuple[str, ...], list[float]] = {(): [], ("earlier",): []}
        for earlier, rates in first.items():
            for seed in range(8):
                spec = self.spec(f"{len(earlier)}-{seed}", *earlier)
                spec = spec.model_copy(update={"sampler": spec.sampler.model_copy(update={"seed": seed})})
                rates.append(suggest(opened(spec, tmp_path).ask(9), spec).lr_g)
        cold, warm = first.values()
        assert max(warm) < 1e-3 < max(cold), "half of the range in logarithms"

    def test_each_own_trial_takes_the_place_of_an_earlier_one_until_none_is_left(self, database, tmp_path):
        self.searched(self.spec("earlier"), 40, tmp_path)
        spec = self.spec("warm", "earlier")
        for n in (1, 4, 30):
            trials = self.searched(spec, n, tmp_path)
            told = MeritView(trials.study, spec).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            assert sum(trial.number < 0 for trial in told) == max(0, EARLIER - n)
            assert sum(trial.number >= 0 for trial in told) == n
        assert len(trials.study.trials) == 30

    def test_what_the_earlier_study_did_not_search_is_drawn_alike_each_time(self, database, tmp_path):
        self.searched(self.spec("earlier"), 12, tmp_path)
        spec = self.spec("warm", "earlier", space=tuple(SPEC.space))
        trials = opened(spec, tmp_path)
        told = [[t.params for t in MeritView(trials.study, spec).get_trials()] for _ in range(2)]
        assert told[0] == told[1]
        assert len(told[0]) == 12
        assert all(set(params) >= {"lr", "batch_size"} for params in told[0])

    def test_a_study_that_shares_nothing_or_is_not_there_is_refused(self, database, tmp_path):
        self.searched(self.spec("earlier"), 3, tmp_path)
        for earlier, space, why in (("earlier", ("batch_size",), "no scored trial"), ("earlier2", ("lr",), "earlier?")):
            with pytest.raises(UsageError, match=f"sampler.from: .*{why}"):
                opened(self.spec("new", earlier, space=space), tmp_path)


def test_paused_is_neither_waiting_to_begin_nor_a_retry(trials):
    train(trials, trials.ask(9), 1.0)
    assert paused_at(frozen(trials, 0)) == FIRST
    trial = trials.ask(9)
    write_attrs(trial, TrialAttrs(hparams=suggest(trial, SPEC).to_dict(), worker={**this_process(), "start": "1"}))
    trials.heal()
    assert paused_at(frozen(trials, 2)) is None
    assert trials.ask(9).number == 2, "a retry goes first"
