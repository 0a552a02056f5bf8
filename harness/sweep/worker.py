"""A worker: asks the study for trials and runs them, one after the other, until the budget is reached."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from harness.errors import DiskFull, Diverged, Fenced, Interrupted, StorageLost, SweepError, without_secrets
from harness.store.records import StudyAttrs, TrialAttrs
from harness.store.samplers import kimg_to_images
from harness.store.trials import INTERRUPTED, OOM, Lease, write_attrs
from harness.sweep import events
from harness.sweep.failures import DISK_FULL, in_words, is_device_lost, is_disk_full, is_oom, is_oom_of_host
from harness.sweep.objective import objective, open_attempt, report
from harness.sweep.setup import WorkerSetup
from harness.training.attempt import Attempt
from harness.training.loop import Degenerate

# What a trial that diverged teaches the sampler: worse than any real score, and finite.
DIVERGED_VALUE = 1e4
_MAX_FAILURES_IN_A_ROW = 3
_DECLARED_DEAD = "was declared dead; continued elsewhere"
# Seconds between questions of a worker without a trial: others run the last ones, and may yet die.
_IDLE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnd:
    """How a trial ended.

    Attributes:
        state: Optuna's.
        values: of the objectives, of a COMPLETE trial.
        reason: why it is not COMPLETE.
        traceback: of an error that nobody foresaw.
        retires: memory ran out next to other workers: this one is to leave them its share.
    """

    state: TrialState
    values: Sequence[float] | None = None
    reason: str = ""
    traceback: str = ""
    retires: bool = False

    @property
    def failed(self) -> bool:
        """Whether it failed for a reason of its own."""
        return self.state == TrialState.FAIL and not self.reason.startswith(INTERRUPTED)


def work(setup: WorkerSetup, target: int | None = None) -> bool:
    """Run trials until the study has its target or ``setup.stop()`` says so.

    Args:
        setup: what trials need.
        target: COMPLETE and PRUNED trials wanted; None is the study's own, which a later start may raise.

    Returns:
        Whether this worker retired: memory ran out, and others run. Number 0 takes trials again once it is alone.

    Raises:
        SweepError: several trials in a row failed for reasons of their own, as the rest of the budget would.
        StorageLost: the database was away for longer than the grace period.
        DiskFull: a checkpoint could not be written; the trial is continued later.
    """
    failures: list[str] = []
    retired = False
    while not (setup.stop() or (retired and setup.job.index > 0)):
        wanted = StudyAttrs.parse(setup.trials.study.user_attrs).target if target is None else target
        trial = setup.trials.ask(wanted, alone=retired)
        if trial is None:
            if setup.trials.is_done(wanted):
                break
            Event().wait(_IDLE_S)
            continue
        end = run_trial(trial, setup)
        retired = retired or end.retires
        failures = [*failures, end.reason] if end.failed else []
        if len(failures) == _MAX_FAILURES_IN_A_ROW:
            raise SweepError(
                f"{len(failures)} trials in a row failed; the last: {failures[-1]}",
                "Each trial's reason is in the report and in MLflow. Run `harness doctor`, then start again.",
            )
    return retired


def run_trial(trial: optuna.Trial, setup: WorkerSetup) -> TrialEnd:
    """Run one trial to its end state in the database and in its folder.

    Raises:
        StorageLost: the database was away for longer than the grace period; the trial is continued later.
        DiskFull: a checkpoint could not be written; the trial is continued later.
        AcceleratorError: the device is lost to this process, which must end.
    """
    started = time.perf_counter()
    attempt: Attempt | None = None
    with Lease(trial) as lease:
        try:
            try:
                attempt = open_attempt(trial, setup, lease)
                end = TrialEnd(state=TrialState.COMPLETE, values=objective(trial, attempt, setup))
            except optuna.TrialPruned as pruned:
                end = TrialEnd(state=TrialState.PRUNED, reason=str(pruned))
            except (Diverged, Degenerate) as problem:
                end = TrialEnd(state=TrialState.PRUNED, reason=f"diverged: {problem.problem}")
                teach_divergence(trial, problem, attempt.history.kimg if attempt else 0.0)
            except Interrupted as stopped:
                end = TrialEnd(state=TrialState.FAIL, reason=f"{INTERRUPTED}: {stopped.problem}")
            except (Fenced, StorageLost, UpdateFinishedTrialError):
                raise
            except Exception as error:
                if is_device_lost(error):
                    raise
                end = failure(error, trial, setup)
            write_attrs(trial, TrialAttrs(elapsed_s=round(time.perf_counter() - started, 2)))
            lease.ending = True
            setup.trials.end(trial, end.state, end.values, end.reason)
        except (Fenced, UpdateFinishedTrialError):
            lease.ending = False
            # Another attempt has the trial now; this one's run is closed when somebody reconciles.
            setup.publish(events.Ended(number=trial.number, state="FAIL", reason=_DECLARED_DEAD))
            return TrialEnd(state=TrialState.FAIL, reason=f"{INTERRUPTED}: {_DECLARED_DEAD}")
    _conclude(trial, end, attempt, setup)
    # A training and its step, on CUDA a graph with all of its memory, hold on to each other; the next needs the room.
    gc.collect()
    if OOM in end.reason and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if DISK_FULL in end.reason:
        raise DiskFull(
            end.reason.removeprefix(f"{INTERRUPTED}: "), "Free some space and start again: it continues from there."
        )
    return end


def failure(error: Exception, trial: optuna.Trial, setup: WorkerSetup) -> TrialEnd:
    """The end of a trial that raised. Where memory or disk ran out, another attempt may succeed."""
    text, details = in_words(error), without_secrets("".join(traceback.format_exception(error)))
    if is_disk_full(error):
        return TrialEnd(state=TrialState.FAIL, reason=f"{INTERRUPTED}: {DISK_FULL}: {text}", traceback=details)
    if not is_oom(error):
        return TrialEnd(state=TrialState.FAIL, reason=f"{type(error).__name__}: {text}", traceback=details)
    # A GPU's memory is shared with the workers on it, the machine's with all.
    on_gpu = setup.device.type == "cuda" and not is_oom_of_host(error)
    others = (setup.job.on_gpu if on_gpu else setup.job.workers) - 1
    if others and not TrialAttrs.parse(trial.user_attrs).oom:
        # Retry once with one worker fewer. Worker 0 never retires for good, so one is always left.
        write_attrs(trial, TrialAttrs(oom=True))
        reason = f"{INTERRUPTED}: {OOM} beside {others} other workers; queued again: {text}"
        return TrialEnd(state=TrialState.FAIL, reason=reason, traceback=details, retires=True)
    return TrialEnd(state=TrialState.FAIL, reason=f"{OOM}: {text}", traceback=details)


def teach_divergence(trial: optuna.Trial, problem: Diverged | Degenerate, kimg: float) -> None:
    """Mark the configuration as bad: infeasible for the sampler, with a large finite value for everybody else."""
    step = kimg_to_images(kimg) + 1
    if isinstance(problem, Diverged):
        hparams = TrialAttrs.parse(trial.user_attrs).hparams
        step = problem.step * int(hparams["batch_size"] * hparams["n_dis"])
    write_attrs(trial, TrialAttrs(diverged=True, diverged_step=getattr(problem, "step", None)))
    report(trial, DIVERGED_VALUE, step)
    trial.set_constraint("diverged", 1.0)


def _conclude(trial: optuna.Trial, end: TrialEnd, attempt: Attempt | None, setup: WorkerSetup) -> None:
    """After the database, write how it ended into its folder, and tell the supervisor."""
    if attempt is not None:
        attrs = TrialAttrs.parse(trial.user_attrs)
        scores = {**attrs.scores, "train_s": attempt.history.trained_s()}
        if attrs.samplings:
            scores[setup.final.objective] = statistics.fmean(attrs.samplings)  # what ranks it
        tags = {"trial_state": end.state.name, "reason": end.reason, "error": end.traceback[-4000:]}
        try:
            attempt.end(end.state.name, scores, {name: text for name, text in tags.items() if text})
        except OSError:
            if DISK_FULL not in end.reason:  # there is no room for the curve either; the checkpoint has it
                raise
    value = end.values[0] if end.values else None
    setup.publish(events.Ended(number=trial.number, state=end.state.name, value=value, reason=end.reason))
