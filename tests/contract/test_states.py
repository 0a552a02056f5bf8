"""A state machine over what workers, crashes, outages and healers do to a study, against what it promises."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from harness.errors import Fenced, StorageLost
from harness.home import Home
from harness.machine.processes import this_process
from harness.spec.files import parse_study
from harness.spec.resolved import suggest
from harness.store.database import open_storage
from harness.store.studies import open_study
from harness.store.trials import MAX_CRASHES, Trials, finished_count, trial_key
from harness.tracking.mlflow import STATUS
from harness.training.run_folder import RunInfo
from tests.conftest import TINY_STUDY
from tests.runs import MemoryTracker, reconcile

SPEC = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")
TARGET = 5
GONE = {**this_process(), "start": "1"}
ORDER = {
    TrialState.WAITING: {TrialState.RUNNING},
    TrialState.RUNNING: {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL},
}

ENDS = [
    (TrialState.COMPLETE, 1.5, ""),
    (TrialState.PRUNED, None, "worse than the median"),
    (TrialState.FAIL, None, "ValueError: no"),
    (TrialState.FAIL, None, "interrupted: stopped"),
]


class Sweep(RuleBasedStateMachine):
    """Workers are trials that were asked for and not yet told; a crash is a worker that is no longer there."""

    workers = Bundle("workers")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="states-")
        self.home = home = Home(Path(self.folder.name) / "runs")
        self.storage = open_storage(home, grace=60.0)
        self.trials = Trials(open_study(SPEC, home, storage=self.storage), SPEC, home)
        self.tracker = MemoryTracker()
        self.seen: dict[int, TrialState] = {}
        self.failing = 0
        event.listen(self.storage.engine, "before_cursor_execute", self._maybe_fail)

    def teardown(self) -> None:
        self.storage.engine.dispose()
        self.folder.cleanup()

    def _maybe_fail(self, connection, cursor, statement, *_) -> None:
        if self.failing:
            self.failing -= 1
            if not self.failing:
                raise OperationalError(statement, {}, self.storage.engine.dialect.dbapi.OperationalError("locked"))

    @contextmanager
    def outage(self, at: int):
        """The at-th statement from now fails as one does whose database is away; 0 is none."""
        self.failing = at
        yield
        self.failing = 0

    @rule(target=workers, at=st.integers(0, 12))
    def ask(self, at):
        with self.outage(at):
            trial = self.trials.ask(TARGET)
        if trial is None:
            return None
        hp = suggest(trial, SPEC)
        self.tracker.start(
            RunInfo(key=trial_key("tiny", trial.number), name="t", experiment="tiny", params=hp.to_dict())
        )
        return trial

    @rule(trial=workers, step=st.integers(1, 9), at=st.integers(0, 3))
    def report(self, trial, step, at):
        if trial is None or trial.number not in self._running():
            return
        with self.outage(at):
            trial.report(float(step), step)
            trial.set_user_attr("saved_kimg", float(step))

    @rule(trial=consumes(workers), at=st.integers(0, 9), end=st.sampled_from(ENDS))
    def tell(self, trial, end, at):
        if trial is None:
            return
        alive = trial.number in self._running()
        try:
            with self.outage(at):
                self.trials.end(trial, *end)
        except Fenced:
            assert not alive
        else:
            assert alive

    @rule(trial=consumes(workers))
    def crash(self, trial):
        """kill -9: the trial stays RUNNING until somebody heals it."""
        if trial is not None and trial.number in self._running():
            trial.set_user_attr("worker", GONE)

    @rule(trial=workers)
    def declared_dead(self, trial):
        """The worker lives on: all that it tells afterwards is refused."""
        if trial is not None and trial.number in self._running():
            trial.set_user_attr("worker", GONE)
            self.trials.heal()
            assert trial.number not in self._running()

    @rule(at=st.integers(0, 12))
    def heal(self, at):
        with self.outage(at):
            reconcile(self.trials, self.tracker, self.home)
        assert reconcile(self.trials, self.tracker, self.home) == [], "once is enough"
        for trial in self.trials.study.get_trials():
            run = self.tracker.runs.get(trial_key("tiny", trial.number))
            if trial.state != TrialState.WAITING:
                assert run is not None
                assert run.status == STATUS[trial.state.name]

    @precondition(lambda self: not self.failing)
    @rule()
    def an_outage_that_outlasts_patience(self):
        grace_s = self.storage.outages.grace_s
        self.storage.outages.grace_s = -1.0
        try:
            with self.outage(1), pytest.raises(StorageLost):
                self.trials.heal()
        finally:
            self.storage.outages.grace_s = grace_s

    @invariant()
    def states_only_move_forward_and_counts_add_up(self):
        trials = self.trials.study.get_trials()
        for trial in trials:
            before = self.seen.get(trial.number, trial.state)
            assert trial.state == before or trial.state in _reachable(before), (trial.number, before, trial.state)
            self.seen[trial.number] = trial.state
        assert [trial.number for trial in trials] == list(range(len(trials)))
        counted = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)]
        assert finished_count(self.trials.study) <= len(counted) <= TARGET
        places = Counter(t.user_attrs["place"] for t in counted if "place" in t.user_attrs)
        assert max(places.values(), default=1) == 1
        retries = Counter(t.user_attrs["retry_of"] for t in trials if "retry_of" in t.user_attrs)
        assert max(retries.values(), default=1) == 1
        assert all(t.user_attrs["reason"] for t in trials if t.state == TrialState.FAIL)
        assert all(int(t.user_attrs.get("crashes", 0)) < MAX_CRASHES for t in trials if t.state == TrialState.WAITING)

    def _running(self) -> set[int]:
        return {t.number for t in self.trials.study.get_trials(states=(TrialState.RUNNING,))}


def _reachable(state: TrialState) -> set[TrialState]:
    following = ORDER.get(state, set())
    return following.union(*(_reachable(later) for later in following))


TestStates = Sweep.TestCase
TestStates.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
