"""What the life of trials in the database promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from harness.errors import Fenced, SpecDrift, StorageError, StorageLost
from harness.home import Home
from harness.machine.processes import this_process
from harness.spec.files import parse_study
from harness.spec.resolved import suggest
from harness.spec.study import PrunerSpec
from harness.store.database import dead_after, lock, open_storage, storage_of
from harness.store.records import TrialAttrs
from harness.store.studies import agree_on_protocols, open_study
from harness.store.trials import GIVEN_UP, KILLED, MAX_CRASHES, Lease, Trials, finished_count, write_attrs
from tests.conftest import TINY_STUDY

SPEC = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")
GONE = {**this_process(), "start": "1"}


@pytest.fixture
def trials(database, tmp_path) -> Trials:
    home = Home(tmp_path / "runs")
    return Trials(open_study(SPEC, home), SPEC, home)


def states(trials: Trials) -> dict[str, int]:
    return dict(Counter(trial.state.name for trial in trials.study.get_trials()))


def test_a_killed_trial_is_continued_in_optunas_own_retry_chain_with_its_parameters(trials):
    trial = trials.ask(9)
    trial.set_user_attr("hparams", suggest(trial, SPEC).to_dict())
    trial.set_user_attr("worker", GONE)
    assert trials.heal() == [f"trial 0: {KILLED}", "trial 0: queued to continue"]
    again = trials.ask(9)
    frozen = trials.study.trials[again.number]
    assert again.params == trial.params
    assert RetryHeartbeatStaleTrialCallback.retried_trial_number(frozen) == 0
    assert RetryHeartbeatStaleTrialCallback.retry_history(frozen) == [0] == trials.history(again)
    assert frozen.user_attrs["place"] == trials.study.trials[0].user_attrs["place"] == 0


class Dying:
    """A trial whose worker is killed after some suggestions."""

    def __init__(self, trial: optuna.Trial, after: int) -> None:
        self.trial, self.left = trial, after

    def __getattr__(self, name):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return getattr(self.trial, name)


@pytest.mark.parametrize("finished", [3, 11], ids=["drawn at random", "drawn by TPE"])
@pytest.mark.parametrize("suggested", [0, 1], ids=["none", "one"])
def test_a_kill_while_parameters_are_suggested_changes_none_of_them(trials, tmp_path, finished, suggested):
    home = Home(tmp_path / "runs")
    spec = SPEC.model_copy(update={"name": "twin"})
    twin = Trials(open_study(spec, home), spec, home)
    for value in range(finished):
        for each in (trials, twin):
            trial = each.ask(99)
            suggest(trial, SPEC)
            each.end(trial, TrialState.COMPLETE, float(value), "")
    for _ in range(3):
        killed = trials.ask(99)
        with suppress(KeyboardInterrupt):
            suggest(Dying(killed, suggested), SPEC)
        killed.set_user_attr("worker", GONE)
        trials.heal(crashed=False)
    last = trials.ask(99)
    assert last.number == finished + 3
    assert last.user_attrs["place"] == finished
    assert suggest(last, SPEC) == suggest(twin.ask(99), SPEC)


def test_a_kill_before_a_trial_has_its_place_leaves_no_gap(trials, tmp_path):
    for value in range(2):
        trial = trials.ask(99)
        suggest(trial, SPEC)
        trials.end(trial, TrialState.COMPLETE, float(value), "")
    for _ in range(2):
        taken = trials._take(trials.study.get_trials(states=[TrialState.WAITING]))
        trials.study._storage.set_trial_user_attr(taken, "worker", GONE)
        trials.heal(crashed=False)
    last = trials.ask(99)
    assert (last.number, last.user_attrs["place"]) == (4, 2)


def fails_at(storage, at: int):
    """The at-th statement from now fails, once, as one does whose database is away for a moment."""
    left = iter(range(at - 1, -1, -1))

    def statement(connection, cursor, statement, *_):
        if next(left, None) == 0:
            dbapi = storage.engine.dialect.dbapi
            error = dbapi.OperationalError("locked")
            raise OperationalError(statement, {}, error, connection_invalidated=True)

    event.listen(storage.engine, "before_cursor_execute", statement)
    return lambda: event.remove(storage.engine, "before_cursor_execute", statement)


def test_an_outage_while_a_trial_is_taken_leaves_none_that_runs_without_a_worker(trials):
    """Whichever statement fails: a trial that nobody works on would count as running for as long as the process."""
    ended = 0
    for at in range(1, 31):
        end = fails_at(trials.storage, at)
        trial = trials.ask(99)
        end()
        running = trials.study.get_trials(states=(TrialState.RUNNING,))
        assert [each.number for each in running] == [trial.number]
        assert trial.user_attrs["place"] == ended
        if at % 2:  # what is taken next continues it, or is a new one
            trial.set_user_attr("worker", GONE)
            trials.heal(crashed=False)
        else:
            trials.end(trial, TrialState.PRUNED, None, "worse than the median")
            ended += 1


def test_a_database_that_may_only_be_read_is_refused_in_one_sentence(trials, database):
    only_reading = "PRAGMA query_only = ON"
    if database == "postgresql":
        only_reading = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"

    @event.listens_for(trials.storage.engine, "connect")
    def connected(connection, _):
        connection.execute(only_reading)
        connection.commit()

    trials.storage.scoped_session.remove()
    trials.storage.engine.dispose()
    assert states(trials) == {"WAITING": 1}, "what is there can be read"
    with pytest.raises(StorageError, match=r"(optuna\.db|postgresql database .*) cannot be written: .*read-?only"):
        trials.ask(9)


def test_a_trial_whose_taking_was_not_answered_is_the_one_that_is_given(trials, monkeypatch):
    """It is in the database, but the answer was lost: the repetition finds it."""
    storage, answered = trials.storage, []

    def lost(trial_id, attrs, of=storage.set_trial_user_attrs):
        of(trial_id, attrs)
        if not answered:
            answered.append(trial_id)
            error = storage.engine.dialect.dbapi.OperationalError("locked")
            raise OperationalError("UPDATE", {}, error, connection_invalidated=True)

    monkeypatch.setattr(storage, "set_trial_user_attrs", lost)
    trial = trials.ask(99)
    assert answered == [trial._trial_id]
    assert states(trials) == {"RUNNING": 1}
    assert trials.ask(99).user_attrs["place"] == 1


def test_parameters_once_given_stay_whoever_is_killed(trials):
    trial = trials.ask(99)
    hp = suggest(trial, SPEC)
    trial.set_user_attr("hparams", hp.to_dict())
    for _ in range(3):
        trial.set_user_attr("worker", GONE)
        trials.heal(crashed=False)
        trial = trials.ask(99)
        assert SPEC.hparams(trial.params) == hp


def test_a_retry_comes_before_all_others(trials):
    first = trials.ask(9)
    first.set_user_attr("worker", GONE)
    order = [trials.ask(9) for _ in range(2)]
    assert [trial.user_attrs.get("retry_of") for trial in order] == [0, None]


def test_a_trial_that_kills_its_worker_every_time_is_given_up_and_one_that_gets_on_is_not(trials):
    for _ in range(MAX_CRASHES + 3):
        trial = trials.ask(9)
        trial.set_user_attr("resumed_kimg", 1.0 * trial.number)
        trial.set_user_attr("saved_kimg", 1.0 * trial.number + 1)
        trial.set_user_attr("worker", GONE)
    for _ in range(MAX_CRASHES - 1):
        trial = trials.ask(9)
        assert trials.study.trials[trial.number - 1].user_attrs["reason"] == KILLED
        trial.set_user_attr("worker", GONE)
    trials.heal()
    assert trials.study.trials[trial.number].user_attrs["reason"] == GIVEN_UP
    assert "RUNNING" not in states(trials)


@pytest.mark.parametrize("when", ["before the verdict", "after it"])
@pytest.mark.parametrize("name", ["successive_halving", "hyperband"])
def test_kills_at_a_rung_change_no_verdict_of_successive_halving(tmp_path, monkeypatch, name, when):
    """Optuna counts a rung's score wherever a trial has a note of it, also in attempts that failed.

    Hyperband's brackets go by trials' numbers, and hold a part of the trials each.
    """
    scores = [float(score) for score in random.Random(0).sample(range(1000), 30)]
    scores[2] = 0.0  # kept: it is this one that is killed

    def verdicts(kills: int) -> list[bool]:
        home = Home(tmp_path / f"killed-{kills}")
        spec = SPEC.model_copy(update={"pruner": PrunerSpec(name=name, reduction_factor=2)})
        trials = Trials(open_study(spec, home), spec, home)
        found = []
        for index, score in enumerate(scores):
            trial = trials.ask(99)
            trial.set_user_attr("hparams", suggest(trial, spec).to_dict())
            for _ in range(kills if index == 2 else 0):
                trial.report(score, 100)
                assert not trials.should_prune(trial)
                if when == "before the verdict":
                    trial.set_user_attr("kept_at", None)
                trial.set_user_attr("worker", GONE)
                trials.heal()
                trial = trials.ask(99)
                trial.set_user_attr("hparams", trial.user_attrs["hparams"])
            trial.report(score, 100)
            found.append(trials.should_prune(trial))
            pruned = found[-1]
            trials.end(trial, TrialState.PRUNED if pruned else TrialState.COMPLETE, None if pruned else score, "")
        return found

    monkeypatch.setattr("harness.store.trials.MAX_CRASHES", 9)
    undisturbed = verdicts(0)
    assert any(undisturbed) and not all(undisturbed)
    assert [verdicts(kills) for kills in (1, 3)] == [undisturbed] * 2


def test_a_study_is_scored_by_the_protocols_of_its_first_worker(trials, tmp_path):
    def agree(protocols, *, anyway=False):
        agree_on_protocols(trials.study, Home(tmp_path / "runs"), protocols, resume_anyway=anyway)

    mine = {"final": {"samples": 500, "versions": (("torch", "2.15.0"),)}, "rung": {"samples": 250}}
    other = {"final": {"samples": 500, "versions": (("torch", "2.11.0"),)}, "rung": {"samples": 250}}
    for _ in range(2):
        agree(mine)
    with pytest.raises(
        SpecDrift, match=r"final\.versions: \[\['torch', '2\.11\.0'\]\], not \[\['torch', '2\.15\.0'\]\]"
    ):
        agree(other)
    agree(mine)
    agree(other, anyway=True)
    with pytest.raises(SpecDrift):
        agree(mine)


def test_a_worker_of_another_machine_is_dead_when_the_database_has_not_heard_of_it(trials):
    trial = trials.ask(9)
    trial.set_user_attr("worker", {**this_process(), "host": "another"})
    assert trials.heal() == []
    engine = create_engine(trials.storage.url)
    ago = f"now() - interval '{dead_after(300) + 5} seconds'"
    if engine.dialect.name == "sqlite":
        ago = f"datetime('now', '-{dead_after(300) + 5} seconds')"
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE trial_heartbeats SET heartbeat = {ago}"))
    assert trials.heal() == [f"trial 0: {KILLED}", "trial 0: queued to continue"]


def test_in_a_copy_of_a_home_a_trial_that_runs_in_the_original_is_continued(home, tmp_path):
    trials = Trials(open_study(SPEC, home), SPEC, home)
    running = trials.ask(SPEC.budget.trials)
    assert trials.heal() == [], "its worker, this process, lives"
    shutil.copytree(home.root, tmp_path / "copy")
    copy = Home(tmp_path / "copy")
    copied = Trials(open_study(SPEC, copy), SPEC, copy)
    assert copied.heal() == [f"trial {running.number}: {KILLED}", f"trial {running.number}: queued to continue"]
    assert trials.heal() == []


def test_what_was_declared_dead_can_publish_nothing(trials):
    trial = trials.ask(9)
    with Lease(trial) as lease:
        lease.check()
        trial.set_user_attr("worker", GONE)
        trials.heal()
        with pytest.raises(Fenced):
            lease.check()
        for publish in (
            lambda: trial.report(1.0, 1),
            lambda: trial.set_user_attr("scores", {}),
            lambda: write_attrs(trial, TrialAttrs(scores={"fid20": 1.0}, samplings=[1.0])),
        ):
            with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
                publish()
        with pytest.raises(Fenced, match="its worker was killed"):
            trials.end(trial, TrialState.COMPLETE, 1.0, "")
    assert states(trials) == {"FAIL": 1, "WAITING": 1}


def test_attributes_are_set_together_or_not_at_all(trials):
    trial = trials.ask(9)
    write_attrs(trial, TrialAttrs(saved_kimg=1.0, saved_s=2.0))
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_attrs(trial, TrialAttrs(saved_kimg=3.0, saved_s=object()))
    (found,) = trials.study.trials
    assert (found.user_attrs["saved_kimg"], found.user_attrs["saved_s"]) == (1.0, 2.0)
    assert trial.user_attrs["saved_kimg"] == 1.0


def test_a_trial_that_is_gone_has_no_state(trials):
    trial = trials.ask(9)
    storage = storage_of(trials.study)
    assert storage.trial_state(trial._trial_id) == TrialState.RUNNING
    trials.end(trial, TrialState.PRUNED, None, "")
    assert storage.trial_state(trial._trial_id) == TrialState.PRUNED
    with pytest.raises(KeyError, match="there is no trial with the id 999"):
        storage.trial_state(999)


def test_an_end_that_is_told_twice_happened_once(trials):
    trial = trials.ask(9)
    for _ in range(2):
        trials.end(trial, TrialState.FAIL, None, "interrupted: stopped")
    assert states(trials) == {"FAIL": 1, "WAITING": 1}


def test_an_end_without_a_reason_replaces_the_one_of_a_healing_that_an_outage_broke_off(trials):
    """A worker may be silent for long and yet live: its end is the one that counts."""
    trial = trials.ask(9)
    trials.storage.set_trial_user_attrs(trial._trial_id, {"reason": KILLED})
    for _ in range(2):
        trials.end(trial, TrialState.COMPLETE, 1.0, "")
    (ended,) = trials.study.trials
    assert (ended.state, ended.user_attrs["reason"]) == (TrialState.COMPLETE, "")


def test_no_more_trials_run_than_are_asked_for(trials):
    first, second = trials.ask(2), trials.ask(2)
    assert trials.ask(2) is None
    trials.end(first, TrialState.COMPLETE, 1.0, "")
    assert trials.ask(2) is None
    trials.end(second, TrialState.FAIL, None, "ValueError: no")
    assert trials.ask(2) is not None


def test_two_files_under_one_name_are_refused(trials, tmp_path):
    other = SPEC.model_copy(update={"sampler": SPEC.sampler.model_copy(update={"seed": 99})})
    with pytest.raises(SpecDrift):
        open_study(other, Home(tmp_path / "runs"))


def test_a_lock_is_held_by_one_and_let_go_by_the_dead(trials, tmp_path):
    code = (
        "import sys; from pathlib import Path; from harness.home import Home;"
        "from harness.store.connection import database_url; from harness.store.database import lock;"
        "home = Home(Path(sys.argv[1])); held = lock(database_url(home), home, 'x');"
        "held.__enter__(); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "runs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    context = mp.get_context("fork")
    got = context.Event()

    def wait() -> None:
        with lock(trials.storage.outages.url, Home(tmp_path / "runs"), "x"):
            got.set()

    waiter = context.Process(target=wait)
    waiter.start()
    assert not got.wait(1.0)
    holder.kill()
    assert got.wait(30)
    waiter.join()


def _start_and_take(root: str, storage: str | None, ready, go) -> None:
    if storage:  # a fork server has the environment that it was started in
        os.environ["HARNESS_STORAGE"] = storage
    ready.release()
    go.wait()
    home = Home(Path(root))
    trials = Trials(open_study(SPEC, home, storage=open_storage(home, grace=60)), SPEC, home)
    while (trial := trials.ask(24)) is not None:
        suggest(trial, SPEC)
        trials.end(trial, TrialState.COMPLETE, float(trial.number), "")


def test_eight_processes_start_the_same_new_study_at_once_and_share_its_trials(database, tmp_path):
    context = mp.get_context("forkserver")
    # Imported once, then forked: eight imports of torch would take longer than all that is tested.
    context.set_forkserver_preload([__name__])
    ready, go = context.Semaphore(0), context.Event()
    arguments = (str(tmp_path / "runs"), os.environ.get("HARNESS_STORAGE"), ready, go)
    workers = [context.Process(target=_start_and_take, args=arguments) for _ in range(8)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    go.set()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    home = Home(tmp_path / "runs")
    trials = Trials(open_study(SPEC, home), SPEC, home)
    assert states(trials) == {"COMPLETE": 24}
    assert finished_count(trials.study) == 24
    points = {str(trial.params) for trial in trials.study.get_trials()}
    assert len(points) == 24
    assert sum("preset" in trial.user_attrs for trial in trials.study.get_trials()) == 1


def test_a_storage_outage_is_waited_out_and_a_longer_one_stops_with_its_own_code(postgres, monkeypatch, tmp_path):
    """At ask, report, attribute and tell: what is under way when the server stops happens when it is back."""
    monkeypatch.setenv("HARNESS_STORAGE", postgres.database())
    home = Home(tmp_path / "runs")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "does not answer" in line and back:
            postgres.start()

    storage = open_storage(home, grace=60, say=say)
    trials = Trials(open_study(SPEC, home, storage=storage), SPEC, home)
    back = True

    def through_an_outage(action):
        postgres.stop()
        return action()

    trial = through_an_outage(lambda: trials.ask(9))
    through_an_outage(lambda: suggest(trial, SPEC))
    through_an_outage(lambda: trial.report(1.5, 100))
    through_an_outage(lambda: trial.set_user_attr("a", 1))
    through_an_outage(lambda: write_attrs(trial, TrialAttrs(saved_kimg=2.0, saved_s=3.0)))
    assert through_an_outage(lambda: storage.trial_state(trial._trial_id)) == TrialState.RUNNING
    through_an_outage(lambda: trials.end(trial, TrialState.COMPLETE, 2.5, ""))
    found = trials.study.trials[trial.number]
    assert (found.state, found.value, found.intermediate_values) == (TrialState.COMPLETE, 2.5, {100: 1.5})
    assert [found.user_attrs[name] for name in ("a", "saved_kimg", "saved_s")] == [1, 2, 3]
    assert sum("does not answer; waiting up to 60 s" in line for line in said) == 7
    assert sum("is back after" in line for line in said) == 7

    back = False
    storage.outages.grace_s = 0.2
    postgres.stop()
    try:
        with pytest.raises(StorageLost, match="did not answer for") as caught:
            trials.ask(9)
    finally:
        postgres.start()
    assert caught.value.exit_code == 75
    storage.outages.grace_s = 60
    assert trials.ask(9) is not None
