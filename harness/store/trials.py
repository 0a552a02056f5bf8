"""The life of a study's trials in the database: taken, ended, found dead, continued. All of it under one lock."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.errors import Fenced
from harness.home import Home
from harness.machine.processes import is_gone, this_process
from harness.spec.resolved import ResolvedStudy
from harness.store.attrs import TrialAttrs, position_of, retry_of
from harness.store.database import StudyLock
from harness.store.lease import beat, storage_of
from harness.store.samplers import make_pruner, make_sampler
from harness.store.views import FINISHED, Placed, Ranked, View, in_place, place_of

# A trial whose worker dies this often in a row, without getting any further, is not tried again.
MAX_CRASHES = 3
# Reasons of a FAIL that is continued by another attempt.
INTERRUPTED, KILLED, OOM = "interrupted", "its worker was killed", "oom"
GIVEN_UP = f"{KILLED} {MAX_CRASHES} times without getting further; given up"
_KEPT = (
    "preset",
    "recipe",
    "variant",
    "overrides",
    "own_images",
    "arm",
    "training_seed",
    "position",
    "oom",
    "hparams",
    "kept_at",
)

R = TypeVar("R")


class Trials:
    """What workers and healers do with a study's trials.

    Args:
        study: on a :class:`harness.store.database.PatientStorage`.
        spec: the study's.
        home: where the lock is, with SQLite.
    """

    def __init__(self, study: optuna.Study, spec: ResolvedStudy, home: Home) -> None:
        self.study, self.spec = study, spec
        self.storage = storage_of(study)
        url = self.storage.patience.url
        self.one_machine = url.get_backend_name() == "sqlite"
        self._lock = StudyLock(url, home, f"study-{study.study_name}")

    def ask(self, target: int, *, alone: bool = False) -> optuna.Trial | None:
        """The next trial, or None where COMPLETE, PRUNED and RUNNING ones make up the target.

        Dead workers' trials are failed and queued first. A continued trial goes before all others, so that a sweep
        of one worker does things in the same order whatever was killed.

        Args:
            target: trials wanted.
            alone: none either while another trial is RUNNING.
        """
        call = uuid.uuid4().hex
        return self._locked(lambda: self._ask(target, alone, call))

    def heal(self, *, crashed: bool = True) -> list[str]:
        """Fail the trials whose worker is gone, and queue what is to be continued; a line for each thing done.

        Args:
            crashed: whether a dead worker's trial counts as having crashed it.
        """
        return self._locked(lambda: self._heal(crashed)[0])

    def end(self, trial: optuna.Trial, state: TrialState, values: float | Sequence[float] | None, reason: str) -> None:
        """Tell a trial's end state, once; an interrupted one is queued again.

        Raises:
            Fenced: it was declared dead, and ended otherwise, before.
        """
        self._locked(lambda: self._end(trial, state, values, reason))

    def is_done(self, target: int) -> bool:
        """Whether the target of COMPLETE and PRUNED trials is reached; of a plan, whether no trial is left to run."""
        if self.spec.plan:
            return not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
        return finished_count(self.study) >= target

    def should_prune(self, trial: optuna.Trial) -> bool:
        """The pruner's verdict on a trial under its place's number, which a retry shares with what it continues.

        Of several objectives Optuna prunes by none. Its pruners then see, instead of rung scores, the share of trials
        that dominate a trial at its newest rung: what is on the front there, they let go on.
        """
        storage = self.study._storage
        own = in_place(storage.get_trial(trial._trial_id))
        if not self.spec.objectives:
            view = View(self.study.study_name, storage, pruner=make_pruner(self.spec))
            pruned = bool(view.pruner.prune(view, own))
        else:
            ranked = Ranked(self.study.study_name, storage, pruner=make_pruner(self.spec))
            ranked.step = own.last_step
            pruned = bool(ranked.pruner.prune(ranked, ranked.seen(own)))
        if not pruned:
            self._write(trial._trial_id, TrialAttrs(kept_at=own.last_step))
        return pruned

    def history(self, trial: optuna.Trial) -> list[int]:
        """Numbers of the trials that this one continues, the first first."""
        # As RetryHeartbeatStaleTrialCallback.retry_history, which warns that it is experimental.
        return list(self.study._storage.get_trial(trial._trial_id).system_attrs.get("retry_history", []))

    def _ask(self, target: int, alone: bool, call: str) -> optuna.Trial | None:
        healed, trials = self._heal(crashed=True)
        if healed:
            trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            attrs = TrialAttrs.parse(trial.user_attrs)
            if attrs.worker and attrs.worker.get("call") == call and attrs.position is not None:
                return self._asked(trial._trial_id, attrs.position)  # the answer was lost
        # A plan is done when nothing of it waits: somebody may have asked for fewer trainings meanwhile.
        if not self.spec.plan and sum(t.state in (*FINISHED, TrialState.RUNNING) for t in trials) >= target:
            return None
        if alone and any(trial.state == TrialState.RUNNING for trial in trials):
            return None
        if self.spec.plan and not any(trial.state == TrialState.WAITING for trial in trials):
            return None  # nothing is searched: what failed for good is planned again by the next start
        places = 1 + max((place for trial in trials if (place := place_of(trial)) is not None), default=-1)
        trial_id = self._take(trials)
        position = position_of(self.study._storage.get_trial(trial_id).user_attrs)
        position = places if position is None else position
        beat(self.study, trial_id)
        # Last, and together: a trial without a worker is one that an outage left behind, and the next attempt fails it.
        # One with a worker that lives is nobody's to fail.
        self._write(trial_id, TrialAttrs(worker={**this_process(), "call": call}, position=position))
        return self._asked(trial_id, position)

    def _asked(self, trial_id: int, place: int) -> optuna.Trial:
        # A retry that has yet to be suggested parameters gets those that its place would have got without the kill.
        sampler = Placed(make_sampler(self.spec, place))
        view = View(self.study.study_name, self.study._storage, sampler=sampler)
        return optuna.Trial(view, trial_id)

    def _take(self, trials: list[FrozenTrial]) -> int:
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        for trial in sorted(waiting, key=lambda trial: (retry_of(trial.user_attrs) is None, trial.number)):
            with suppress(UpdateFinishedTrialError):
                if self.study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    return trial._trial_id
        return self.study._storage.create_new_trial(self.study._study_id)

    def _heal(self, crashed: bool) -> tuple[list[str], list[FrozenTrial]]:
        """(what was done, the trials as they were after the dead ones had been failed)."""
        done: list[str] = []
        trials = self.study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        stale = set(self.storage._get_stale_trial_ids(self.study._study_id)) if running else set()
        for trial in running:
            gone = is_gone(TrialAttrs.parse(trial.user_attrs).worker, one_machine=self.one_machine)
            if gone is None:
                gone = trial._trial_id in stale
            if not gone:
                continue
            reason = KILLED if crashed else f"{INTERRUPTED}: {KILLED}"
            if crashed and crashes(trial) >= MAX_CRASHES:
                reason = GIVEN_UP
            with suppress(UpdateFinishedTrialError):
                self._write(trial._trial_id, TrialAttrs(reason=reason))
                self.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                done.append(f"trial {trial.number}: {reason}")
        if done:
            trials = self.study.get_trials(deepcopy=False)
        return done + self._queue_abandoned(trials), trials

    def _queue_abandoned(self, trials: list[FrozenTrial]) -> list[str]:
        continued = {retry_of(trial.user_attrs) for trial in trials}
        return [
            f"trial {trial.number}: queued to continue"
            for trial in trials
            if trial.number not in continued and self._requeue(trial)
        ]

    def _requeue(self, trial: FrozenTrial) -> bool:
        """Queue a killed or interrupted trial as Optuna's own retry does, with the same parameters."""
        if not can_continue(trial):
            return False
        attrs = TrialAttrs.parse(trial.user_attrs)
        retried = TrialAttrs(
            **{name: getattr(attrs, name) for name in _KEPT},
            retry_of=trial.number,
            root=trial.number if attrs.root is None else attrs.root,
            crashes=crashes(trial) if attrs.reason.startswith(KILLED) else 0,
        )
        # The keys of optuna.storages.RetryHeartbeatStaleTrialCallback; a pruner's notes stay with the trial.
        notes = {"failed_trial": trial.number, "retry_history": [], **_decided(trial)}
        notes["retry_history"] = [*notes["retry_history"], trial.number]
        # Killed while parameters were suggested: all are suggested anew, as the sampler draws them one after the other.
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
        storage = self.study._storage
        if not self.storage.trial_state(trial._trial_id).is_finished():
            self._write(trial._trial_id, TrialAttrs(reason=reason))
            self.study.tell(trial, values, state=state)
        else:
            found = storage.get_trial(trial._trial_id)
            ended = TrialAttrs.parse(found.user_attrs).reason
            if found.state != state or ended != reason:
                raise Fenced(f"was declared dead meanwhile: {ended or found.state.name}")
        if reason.startswith(INTERRUPTED) and not self._is_continued(trial.number):
            self._requeue(storage.get_trial(trial._trial_id))

    def _is_continued(self, number: int) -> bool:
        return any(retry_of(other.user_attrs) == number for other in self.study.get_trials(deepcopy=False))

    def _write(self, trial_id: int, attrs: TrialAttrs) -> None:
        self.storage.set_trial_user_attrs(trial_id, attrs.stored())

    def _locked(self, action: Callable[[], R]) -> R:
        """Do it under the lock; during an outage let go, wait, and do it again as a whole."""
        patience = self.storage.patience

        def attempt(repeated: bool) -> R:
            with self._lock.held(), patience.suspended():
                return action()

        return patience.wait_out(attempt)


def trial_key(study: str, number: int) -> str:
    """What a trial's run in the tracker is found by."""
    return f"{study}/{number}"


def can_continue(trial: FrozenTrial) -> bool:
    """Whether a failed trial is one that another attempt continues."""
    reason = TrialAttrs.parse(trial.user_attrs).reason
    return trial.state == TrialState.FAIL and reason != GIVEN_UP and reason.startswith((KILLED, INTERRUPTED))


def crashes(trial: FrozenTrial) -> int:
    """How often in a row this trial's workers died without getting further, the present attempt's included."""
    attrs = TrialAttrs.parse(trial.user_attrs)
    return 1 if attrs.saved_kimg > attrs.resumed_kimg else attrs.crashes + 1


def _decided(trial: FrozenTrial) -> dict[str, Any]:
    """System attributes without successive halving's notes on a rung at which a kill came before the verdict."""
    step = trial.last_step
    if step is None or step == TrialAttrs.parse(trial.user_attrs).kept_at:
        return trial.system_attrs
    score = trial.intermediate_values[step]
    return {
        name: value
        for name, value in trial.system_attrs.items()
        if not (name.startswith("completed_rung_") and value == score)
    }


def finished_count(study: optuna.Study) -> int:
    """COMPLETE and PRUNED trials: what the budget counts."""
    return sum(trial.state in FINISHED for trial in study.get_trials(deepcopy=False))
