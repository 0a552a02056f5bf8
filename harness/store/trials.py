"""The life of trials in the database: taken, held, ended, declared dead, continued."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError

from harness.errors import Fenced
from harness.home import Home
from harness.machine.processes import is_gone, this_process
from harness.spec.resolved import ResolvedStudy
from harness.store.database import HEARTBEAT_S, PatientStorage, locked, storage_of
from harness.store.optuna_private import cached_storage, id_of, retry_chain, retry_notes, show_attrs, stale_trial_ids
from harness.store.promotion import paused_at, promoted_trial, promotion_bars, sampled_trial
from harness.store.records import TrialAttrs, stored_position, stored_retry_of
from harness.store.samplers import FINISHED, PositionView, is_pruned, position_of, pruning_bar
from harness.text import against_bar

# A trial is given up after this many deaths of its worker in a row without progress.
MAX_CRASHES = 3
# Reasons of FAIL; the first two are retried.
INTERRUPTED, KILLED, OOM = "interrupted", "its worker was killed", "oom"
GIVEN_UP = f"{KILLED} {MAX_CRASHES} times without getting further; given up"
# Attributes that a retry takes over.
_KEPT = {"preset", "recipe", "variant", "overrides", "own_images", "arm", "training_seed", "position", "oom", "hparams",
         "kept_at"}  # fmt: skip


class Trials:
    """What workers and healers do with a study's trials; states are changed under the study's lock only."""

    def __init__(self, study: optuna.Study, spec: ResolvedStudy, home: Home) -> None:
        self.study, self.spec, self.home = study, spec, home
        self.storage, self._cached = storage_of(study), cached_storage(study)
        self._study_id = self.storage.get_study_id_from_name(study.study_name)
        url = self.storage.outages.url
        self.one_machine = url.get_backend_name() == "sqlite"
        # The database's file: in a home that was copied during a sweep, running trials have workers that are not at it.
        self._file: int | None = None
        with suppress(OSError):
            self._file = Path(str(url.database)).stat().st_ino if self.one_machine else None

    def ask(self, target: int, *, alone: bool = False) -> optuna.Trial | None:
        """The next trial, or None if there is none now; with ``alone`` only when no other trial runs.

        First, trials of dead workers are failed and queued. Retries run before other trials, so that a sweep with one
        worker takes the same order no matter what was killed; then a promoted trial; then a new one, until COMPLETE,
        PRUNED, RUNNING and paused trials reach the target. At the end, trials that were not promoted are pruned.
        """
        call = uuid.uuid4().hex
        return locked(self.storage, self.home, self.study.study_name, lambda: self._ask(target, alone, call))

    def heal(self, *, crashed: bool = True) -> list[str]:
        """Fail the trials of dead workers (``crashed``: it counts as a crash) and queue retries; a line for each."""
        return locked(self.storage, self.home, self.study.study_name, lambda: self._heal(crashed)[0])

    def end(self, trial: optuna.Trial, state: TrialState, values: float | Sequence[float] | None, reason: str) -> None:
        """Store a trial's end state once, and queue an interrupted trial again; Fenced if it has ended otherwise."""
        locked(self.storage, self.home, self.study.study_name, lambda: self._end(trial, state, values, reason))

    def pause(self, trial: optuna.Trial, step: int) -> None:
        """Pause a trial at the rung of this step; any worker may continue it. Fenced if it was declared dead."""
        mine = TrialAttrs.parse(trial.user_attrs).worker
        action = partial(self._pause, id_of(trial), step, mine)
        locked(self.storage, self.home, self.study.study_name, action)

    def is_done(self, target: int) -> bool:
        """Whether COMPLETE and PRUNED trials reach the target; for a fixed study, whether no trial is left to run."""
        if self.spec.plan:
            return not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
        return finished_count(self.study) >= target

    def should_prune(self, trial: optuna.Trial) -> bool:
        """The pruner's verdict on a trial; the rung from which it continues is stored."""
        own = self._cached.get_trial(id_of(trial))
        pruned = is_pruned(self.study, self.spec, own)
        if not pruned:
            self._write(id_of(trial), TrialAttrs(kept_at=own.last_step))
        return pruned

    def bar(self, trial: optuna.Trial) -> float | None:
        """The worst score that continues at the rung where the pruner has just judged this trial."""
        return pruning_bar(self.study, self.spec, self._cached.get_trial(id_of(trial)))

    def history(self, trial: optuna.Trial) -> list[int]:
        """Numbers of the trials that this one continues, oldest first."""
        return retry_chain(self._cached.get_trial(id_of(trial)))

    def _ask(self, target: int, alone: bool, call: str) -> optuna.Trial | None:
        healed, trials = self._heal(crashed=True)
        if healed:
            trials = self.study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        paused = [trial for trial in trials if paused_at(trial) is not None]
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING and paused_at(trial) is None]
        for trial in running:
            attrs = TrialAttrs.parse(trial.user_attrs)
            if attrs.worker and attrs.worker.get("call") == call and attrs.position is not None:
                return sampled_trial(self.study, self.spec, id_of(trial), attrs.position)  # the answer was lost
        # A fixed study is done when no trial waits: its target may have been lowered. The next start queues again what
        # failed for good.
        enough = _begun(trials) >= target
        if (alone and running) or (self.spec.plan and not waiting):
            return None
        retries = any(stored_retry_of(trial.user_attrs) is not None for trial in waiting)
        if paused and not retries:
            promoted = promoted_trial(self.study, self.spec, closing=enough)
            if promoted is not None:
                return self._promote(promoted, call)
        if enough and not self.spec.plan:
            if not running and not retries:
                self._prune(paused)
            return None
        next_position = 1 + max((at for trial in trials if (at := position_of(trial)) is not None), default=-1)
        trial_id = self._take(waiting)
        position = stored_position(self._cached.get_trial(trial_id).user_attrs)
        position = next_position if position is None else position
        beat(self.storage, trial_id)
        # Last, and together: an outage before this leaves a trial without a worker, which the next call fails.
        self._write(trial_id, TrialAttrs(worker=self._worker(call), position=position))
        return sampled_trial(self.study, self.spec, trial_id, position)

    def _promote(self, trial: FrozenTrial, call: str) -> optuna.Trial | None:
        if not self.storage.set_trial_state_values(id_of(trial), TrialState.RUNNING):
            return None
        beat(self.storage, id_of(trial))
        kept_at = TrialAttrs.parse(trial.user_attrs).paused_at
        self._write(id_of(trial), TrialAttrs(worker=self._worker(call), kept_at=kept_at, paused_at=None))
        # All of its parameters are known, so no sampler is used.
        return optuna.Trial(PositionView(self.study, sampler=RandomSampler()), id_of(trial))

    def _pause(self, trial_id: int, step: int, mine: Mapping[str, Any] | None) -> None:
        stored = self._cached.get_trial(trial_id)
        attrs = TrialAttrs.parse(stored.user_attrs)
        if stored.state.is_finished():
            raise Fenced(f"was declared dead meanwhile: {attrs.reason or stored.state.name}")
        if stored.state == TrialState.RUNNING and (attrs.worker == mine or attrs.paused_at == step):
            # Remove its worker first: after a death in between, the next worker fails and continues it.
            self._write(trial_id, TrialAttrs(worker=None, paused_at=step))
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def _prune(self, paused: Sequence[FrozenTrial]) -> None:
        bars = promotion_bars(self.study, self.spec) if paused else {}
        for trial in paused:
            last = trial.last_step
            assert last is not None
            score = trial.intermediate_values[last]
            why = "others were better there" if self.spec.objectives else against_bar(score, bars.get(last))
            reason = f"paused at {last / 1000:g} kimg, and not promoted: {why}"
            with suppress(UpdateFinishedTrialError):
                self._write(id_of(trial), TrialAttrs(reason=reason))
                self.storage.set_trial_state_values(id_of(trial), TrialState.PRUNED)

    def _worker(self, call: str) -> dict[str, Any]:
        return {**this_process(), "call": call, "file": self._file}

    def _take(self, waiting: list[FrozenTrial]) -> int:
        for trial in sorted(waiting, key=lambda trial: (stored_retry_of(trial.user_attrs) is None, trial.number)):
            with suppress(UpdateFinishedTrialError):
                if self.storage.set_trial_state_values(id_of(trial), TrialState.RUNNING):
                    return id_of(trial)
        return self._cached.create_new_trial(self._study_id)

    def _heal(self, crashed: bool) -> tuple[list[str], list[FrozenTrial]]:
        """Return (a line for each thing done, the trials afterwards)."""
        done: list[str] = []
        trials = self.study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        stale = stale_trial_ids(self.storage, self._study_id) if running else set()
        for trial in running:
            worker = TrialAttrs.parse(trial.user_attrs).worker
            gone = is_gone(worker, one_machine=self.one_machine)
            if gone is None:
                gone = id_of(trial) in stale
            elif worker and None not in (self._file, worker.get("file")):
                gone = gone or worker["file"] != self._file
            if not gone:
                continue
            reason = KILLED if crashed else f"{INTERRUPTED}: {KILLED}"
            if crashed and crashes(trial) >= MAX_CRASHES:
                reason = GIVEN_UP
            with suppress(UpdateFinishedTrialError):
                self._write(id_of(trial), TrialAttrs(reason=reason))
                self.storage.set_trial_state_values(id_of(trial), TrialState.FAIL)
                done.append(f"trial {trial.number}: {reason}")
        if done:
            trials = self.study.get_trials(deepcopy=False)
        continued = {stored_retry_of(trial.user_attrs) for trial in trials}
        queued = [trial.number for trial in trials if trial.number not in continued and self._requeue(trial)]
        return [*done, *(f"trial {number}: queued to continue" for number in queued)], trials

    def _requeue(self, trial: FrozenTrial) -> bool:
        """Queue a killed or interrupted trial with the same parameters, as Optuna's own retry does."""
        if not can_continue(trial):
            return False
        attrs = TrialAttrs.parse(trial.user_attrs)
        retried = TrialAttrs(
            **{name: getattr(attrs, name) for name in _KEPT & attrs.given},
            retry_of=trial.number,
            root=trial.number if attrs.root is None else attrs.root,
            crashes=crashes(trial) if attrs.reason.startswith(KILLED) else 0,
        )
        notes = retry_notes(trial, undecided=trial.last_step not in (None, attrs.kept_at))
        # If it was killed while parameters were suggested, all of them are suggested again.
        whole = bool(attrs.hparams)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            retry = create_trial(
                state=TrialState.WAITING,
                params=trial.params if whole else {},
                distributions=trial.distributions if whole else {},
                user_attrs=retried.stored(),
                system_attrs=notes,
            )
        self.study.add_trial(retry)
        return True

    def _end(self, trial: optuna.Trial, state: TrialState, values: float | Sequence[float] | None, reason: str) -> None:
        if not self.storage.trial_state(id_of(trial)).is_finished():
            self._write(id_of(trial), TrialAttrs(reason=reason))
            if state == TrialState.PRUNED:  # tell() would make its last rung score its final one
                self.storage.set_trial_state_values(id_of(trial), state)
            else:
                self.study.tell(trial, values, state=state)
        else:
            ended = self._cached.get_trial(id_of(trial))
            stored = TrialAttrs.parse(ended.user_attrs).reason
            if ended.state != state or stored != reason:
                raise Fenced(f"was declared dead meanwhile: {stored or ended.state.name}")
        if reason.startswith(INTERRUPTED):
            others = self.study.get_trials(deepcopy=False)
            if all(stored_retry_of(other.user_attrs) != trial.number for other in others):
                self._requeue(self._cached.get_trial(id_of(trial)))

    def _write(self, trial_id: int, attrs: TrialAttrs) -> None:
        self.storage.set_trial_user_attrs(trial_id, attrs.stored())


def trial_key(study: str, number: int) -> str:
    """The key of a trial's run in the tracker."""
    return f"{study}/{number}"


def can_continue(trial: FrozenTrial) -> bool:
    """Whether another attempt continues this trial."""
    if trial.state != TrialState.FAIL:
        return False
    reason = TrialAttrs.parse(trial.user_attrs).reason
    return reason != GIVEN_UP and reason.startswith((KILLED, INTERRUPTED))


def crashes(trial: FrozenTrial) -> int:
    """How many workers of this trial died in a row without getting further, this attempt's included."""
    attrs = TrialAttrs.parse(trial.user_attrs)
    return 1 if attrs.saved_kimg > attrs.resumed_kimg else attrs.crashes + 1


def finished_count(study: optuna.Study) -> int:
    """COMPLETE and PRUNED trials, which the budget counts, without those that another program added."""
    return sum(_is_counted(trial) for trial in study.get_trials(deepcopy=False))


def begun_count(study: optuna.Study) -> int:
    """Trials that run, are paused, or count as finished; with this as the target, no other one begins."""
    return _begun(study.get_trials(deepcopy=False))


def _begun(trials: Sequence[FrozenTrial]) -> int:
    return sum(
        _is_counted(trial) or trial.state == TrialState.RUNNING or paused_at(trial) is not None for trial in trials
    )


def _is_counted(trial: FrozenTrial) -> bool:
    return trial.state in FINISHED and bool(TrialAttrs.parse(trial.user_attrs).given)


class Lease:
    """A worker's hold on its trial: heartbeats, and the fence that stops it once it was declared dead."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.storage, self.trial_id = storage_of(trial.study), id_of(trial)
        self.ending = False
        self._ended = Event()
        self._thread = Thread(target=self._beat, name=f"lease {self.trial_id}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def check(self) -> None:
        """Raise Fenced if this worker does not hold the trial any more; called before anything is published."""
        state = self.storage.trial_state(self.trial_id)
        if state != TrialState.RUNNING:
            raise Fenced(f"was declared dead meanwhile (it is {state.name}); this attempt publishes nothing more")

    def check_now(self) -> None:
        """As :meth:`check`, without waiting during an outage; does nothing while the worker ends the trial."""
        if not self.ending:
            with self.storage.outages.not_waiting():
                self.check()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            beat(self.storage, self.trial_id)


def beat(storage: PatientStorage, trial_id: int) -> None:
    """Send one heartbeat; none during an outage, which is shorter than the silence that counts as death."""
    with suppress(StorageInternalError, DBAPIError):
        storage.record_heartbeat(trial_id)


def write_attrs(trial: optuna.Trial, attrs: TrialAttrs) -> None:
    """Write the given attributes in one transaction; UpdateFinishedTrialError if the trial has ended."""
    stored = attrs.stored()
    storage_of(trial.study).set_trial_user_attrs(id_of(trial), stored)
    show_attrs(trial, stored)
