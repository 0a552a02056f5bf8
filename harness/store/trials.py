"""The life of a study's trials in the database: taken, ended, declared dead, continued. All of it under one lock."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.errors import Fenced
from harness.home import Home
from harness.machine.processes import is_gone, this_process
from harness.spec.resolved import ResolvedStudy
from harness.store.attrs import TrialAttrs, stored_position, stored_retry_of
from harness.store.database import StudyLock, storage_of
from harness.store.lease import beat
from harness.store.optuna_private import cached_storage, id_of, retry_chain, retry_notes, stale_trial_ids
from harness.store.promotion import next_promotion
from harness.store.samplers import kimg_to_images, make_pruner, make_sampler
from harness.store.views import (
    FINISHED,
    DominanceView,
    MeritView,
    PositionSampler,
    PositionView,
    is_baseline,
    is_paused,
    losses_at_levels,
    numbered_by_position,
    position_of,
)

# A trial whose workers die this often in a row, without getting any further, is not retried.
MAX_CRASHES = 3
# Reasons of a FAIL; another attempt continues the first two.
INTERRUPTED, KILLED, OOM = "interrupted", "its worker was killed", "oom"
GIVEN_UP = f"{KILLED} {MAX_CRASHES} times without getting further; given up"
# Attributes that a retry shares with the trial that it continues.
_KEPT = {"preset", "recipe", "variant", "overrides", "own_images", "arm", "training_seed", "position", "oom", "hparams",
         "kept_at"}  # fmt: skip

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
        self.storage, self._cached = storage_of(study), cached_storage(study)
        self._study_id = self.storage.get_study_id_from_name(study.study_name)
        url = self.storage.outages.url
        self.one_machine = url.get_backend_name() == "sqlite"
        self._lock = StudyLock(url, home, f"study-{study.study_name}")

    def ask(self, target: int, *, alone: bool = False) -> optuna.Trial | None:
        """The next trial, or None where none is to be run now.

        First, trials of dead workers are failed and queued. Retries run before other trials, so that a sweep with one
        worker takes the same order no matter what was killed; then the paused trial that is promoted; then a new one,
        until COMPLETE, PRUNED, RUNNING and paused ones reach the target. With the last of them, paused trials that
        were not promoted are pruned.

        Args:
            target: trials wanted.
            alone: also None while another trial is RUNNING.
        """
        call = uuid.uuid4().hex
        return self._locked(lambda: self._ask(target, alone, call))

    def heal(self, *, crashed: bool = True) -> list[str]:
        """Fail the trials whose worker is gone, and queue those that continue; a line for each thing done.

        Args:
            crashed: whether a dead worker's trial counts as having crashed it.
        """
        return self._locked(lambda: self._heal(crashed)[0])

    def end(self, trial: optuna.Trial, state: TrialState, values: float | Sequence[float] | None, reason: str) -> None:
        """Store a trial's end state, once; an interrupted trial is queued again.

        Raises:
            Fenced: it was declared dead before, and ended in another way.
        """
        self._locked(lambda: self._end(trial, state, values, reason))

    def pause(self, trial: optuna.Trial, step: int) -> None:
        """Leave a trial at the rung of this step to whoever promotes it.

        Raises:
            Fenced: it was declared dead before.
        """
        mine = TrialAttrs.parse(trial.user_attrs).worker
        self._locked(lambda: self._pause(id_of(trial), step, mine))

    def is_done(self, target: int) -> bool:
        """Whether the target of COMPLETE and PRUNED trials is reached; of a plan, whether no trial is left to run."""
        if self.spec.plan:
            return not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
        return finished_count(self.study) >= target

    def should_prune(self, trial: optuna.Trial) -> bool:
        """The pruner's verdict on a trial at its position, which a retry shares with what it continues.

        Optuna prunes by one objective only. With several, its pruners see, instead of rung scores, the share of trials
        that dominate a trial at its newest rung: what is Pareto-optimal there is not pruned.
        """
        own = numbered_by_position(self._cached.get_trial(id_of(trial)))
        pruner = make_pruner(self.spec)
        if not self.spec.objectives:
            pruned = pruner.prune(PositionView(self.study), own)
        else:
            view = DominanceView(self.study)
            view.step = own.last_step
            pruned = pruner.prune(view, view.as_ranked(own))
        if not pruned:
            self._write(id_of(trial), TrialAttrs(kept_at=own.last_step))
        return bool(pruned)

    def history(self, trial: optuna.Trial) -> list[int]:
        """Numbers of the trials that this one continues, the first first."""
        return retry_chain(self._cached.get_trial(id_of(trial)))

    def _ask(self, target: int, alone: bool, call: str) -> optuna.Trial | None:
        healed, trials = self._heal(crashed=True)
        if healed:
            trials = self.study.get_trials(deepcopy=False)
        for trial in [trial for trial in trials if trial.state == TrialState.RUNNING]:
            attrs = TrialAttrs.parse(trial.user_attrs)
            if attrs.worker and attrs.worker.get("call") == call and attrs.position is not None:
                return self._asked(id_of(trial), attrs.position)  # the answer was lost
        running = any(trial.state == TrialState.RUNNING for trial in trials)
        if alone and running:
            return None
        # A fixed study is done when nothing of it waits: its target may have been lowered meanwhile.
        if self.spec.plan and not any(trial.state == TrialState.WAITING for trial in trials):
            return None  # nothing is searched; the next start queues again what failed for good
        begun = sum(trial.state in (*FINISHED, TrialState.RUNNING) or is_paused(trial) for trial in trials)
        closing = not self.spec.plan and begun >= target
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING and not is_paused(trial)]
        retries = any(stored_retry_of(trial.user_attrs) is not None for trial in waiting)
        if not retries and (promoted := self._next_promotion(trials, closing)) is not None:
            return self._promote(promoted, call)
        if closing:
            if not running and not retries:
                self._prune_paused(trials)
            return None
        next_position = 1 + max((at for trial in trials if (at := position_of(trial)) is not None), default=-1)
        trial_id = self._take(waiting)
        position = stored_position(self._cached.get_trial(trial_id).user_attrs)
        position = next_position if position is None else position
        beat(self.storage, trial_id)
        # Last, and together: an outage before this leaves a trial without a worker, which the next attempt fails. A
        # trial with a living worker is never failed.
        self._write(trial_id, TrialAttrs(worker={**this_process(), "call": call}, position=position))
        return self._asked(trial_id, position)

    def _asked(self, trial_id: int, position: int) -> optuna.Trial:
        # A retry without parameters is suggested those that its position would have got without the kill.
        sampler = PositionSampler(make_sampler(self.spec, position))
        if self.spec.promotions:
            return optuna.Trial(MeritView(self.study, self.spec, sampler=sampler), trial_id)
        return optuna.Trial(PositionView(self.study, sampler=sampler), trial_id)

    def _next_promotion(self, trials: list[FrozenTrial], closing: bool) -> FrozenTrial | None:
        if not self.spec.promotions or not any(is_paused(trial) for trial in trials):
            return None
        continued = {stored_retry_of(trial.user_attrs) for trial in trials}
        searched = {
            numbered.number: trial
            for trial in trials
            if trial.number not in continued and not is_baseline(trial)
            for numbered in [numbered_by_position(trial)]
        }
        levels = losses_at_levels([numbered_by_position(trial) for trial in searched.values()], self.spec)
        steps = [kimg_to_images(kimg) for kimg, _ in self.spec.promotions]
        attrs = {position: TrialAttrs.parse(trial.user_attrs) for position, trial in searched.items()}
        chosen = next_promotion(
            [(losses, keep) for losses, (_, keep) in zip(levels, self.spec.promotions, strict=False)],
            {at: steps.index(attrs[at].paused_at) for at, trial in searched.items() if is_paused(trial)},
            closing=closing,
            gone={at for at, trial in searched.items() if trial.state == TrialState.PRUNED},
        )
        return None if chosen is None else searched[chosen]

    def _promote(self, trial: FrozenTrial, call: str) -> optuna.Trial | None:
        if not self.storage.set_trial_state_values(id_of(trial), TrialState.RUNNING):
            return None
        beat(self.storage, id_of(trial))
        paused_at = TrialAttrs.parse(trial.user_attrs).paused_at
        worker = {**this_process(), "call": call}
        self._write(id_of(trial), TrialAttrs(worker=worker, kept_at=paused_at, paused_at=None))
        # All of its parameters are known: no sampler is asked.
        return optuna.Trial(PositionView(self.study, sampler=RandomSampler()), id_of(trial))

    def _pause(self, trial_id: int, step: int, mine: Mapping[str, Any] | None) -> None:
        stored = self._cached.get_trial(trial_id)
        attrs = TrialAttrs.parse(stored.user_attrs)
        if stored.state.is_finished():
            raise Fenced(f"was declared dead meanwhile: {attrs.reason or stored.state.name}")
        if stored.state == TrialState.RUNNING and (attrs.worker == mine or attrs.paused_at == step):
            # Without a worker first: whoever dies in between leaves a trial that the next one fails and continues.
            self._write(trial_id, TrialAttrs(worker=None, paused_at=step))
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def _prune_paused(self, trials: list[FrozenTrial]) -> None:
        """At the end of the study, nothing is compared any more."""
        for trial in trials:
            if is_paused(trial):
                last = trial.last_step
                assert last is not None
                reason = f"paused at {last / 1000:g} kimg, and not promoted: others were better there"
                self._write(id_of(trial), TrialAttrs(reason=reason))
                values = [trial.intermediate_values[last]] if not self.spec.objectives else None
                with suppress(UpdateFinishedTrialError):
                    self.storage.set_trial_state_values(id_of(trial), TrialState.PRUNED, values)

    def _take(self, waiting: list[FrozenTrial]) -> int:
        for trial in sorted(waiting, key=lambda trial: (stored_retry_of(trial.user_attrs) is None, trial.number)):
            with suppress(UpdateFinishedTrialError):
                if self.storage.set_trial_state_values(id_of(trial), TrialState.RUNNING):
                    return id_of(trial)
        return self._cached.create_new_trial(self._study_id)

    def _heal(self, crashed: bool) -> tuple[list[str], list[FrozenTrial]]:
        """(a line for each thing done, the trials after the dead ones were failed)."""
        done: list[str] = []
        trials = self.study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        stale = stale_trial_ids(self.storage, self._study_id) if running else set()
        for trial in running:
            gone = is_gone(TrialAttrs.parse(trial.user_attrs).worker, one_machine=self.one_machine)
            if gone is None:
                gone = id_of(trial) in stale
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
        return done + self._queue_abandoned(trials), trials

    def _queue_abandoned(self, trials: list[FrozenTrial]) -> list[str]:
        continued = {stored_retry_of(trial.user_attrs) for trial in trials}
        return [
            f"trial {trial.number}: queued to continue"
            for trial in trials
            if trial.number not in continued and self._requeue(trial)
        ]

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
        # Killed while parameters were suggested: all are suggested again, as the sampler draws them one by one.
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
            self.study.tell(trial, values, state=state)
        else:
            ended = self._cached.get_trial(id_of(trial))
            stored = TrialAttrs.parse(ended.user_attrs).reason
            if ended.state != state or stored != reason:
                raise Fenced(f"was declared dead meanwhile: {stored or ended.state.name}")
        if reason.startswith(INTERRUPTED) and not self._is_continued(trial.number):
            self._requeue(self._cached.get_trial(id_of(trial)))

    def _is_continued(self, number: int) -> bool:
        return any(stored_retry_of(other.user_attrs) == number for other in self.study.get_trials(deepcopy=False))

    def _write(self, trial_id: int, attrs: TrialAttrs) -> None:
        self.storage.set_trial_user_attrs(trial_id, attrs.stored())

    def _locked(self, action: Callable[[], R]) -> R:
        """The action's result under the lock; during an outage let go of the lock, wait, and repeat all of it."""
        outages = self.storage.outages

        def attempt(repeated: bool) -> R:
            with self._lock.held(), outages.not_waiting():
                return action()

        return outages.wait_out(attempt)


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
    """How often in a row this trial's workers died without getting further, including this attempt's worker."""
    attrs = TrialAttrs.parse(trial.user_attrs)
    return 1 if attrs.saved_kimg > attrs.resumed_kimg else attrs.crashes + 1


def finished_count(study: optuna.Study) -> int:
    """COMPLETE and PRUNED trials: what the budget counts."""
    return sum(trial.state in FINISHED for trial in study.get_trials(deepcopy=False))
