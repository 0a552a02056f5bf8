"""A worker: asks the study for trials and runs them, one after the other, until the budget is reached."""

from __future__ import annotations

import errno
import gc
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

import harness
from harness.errors import (
    DiskFull,
    Diverged,
    Fenced,
    HarnessError,
    Interrupted,
    Paused,
    StorageLost,
    SweepError,
    first_line,
    without_secrets,
)
from harness.gan.fast.precision import FLOAT32, tensor_cores
from harness.machine.processes import exact_arithmetic, keep_memory, on_device, use_threads
from harness.machine.provenance import code_sha256
from harness.scoring.diversity import real_distance
from harness.scoring.scorer import Scorers
from harness.spec.resolved import ResolvedStudy
from harness.store.connection import grace_s
from harness.store.database import open_storage
from harness.store.records import StudyAttrs, TrialAttrs
from harness.store.samplers import kimg_to_images
from harness.store.studies import agree_on_protocols
from harness.store.trials import INTERRUPTED, OOM, Lease, Trials, write_attrs
from harness.sweep.lanes import Lanes
from harness.sweep.messages import Ended, Event, Ready, Said, WorkerJob
from harness.sweep.objective import WorkerSetup, objective, open_attempt, report
from harness.tracking.client import new_client
from harness.tracking.mirror import Mirror
from harness.tracking.mlflow import MlflowTracker
from harness.training.attempt import Attempt, Degenerate
from harness.training.share import Share

# The value of a diverged trial for the sampler: worse than any real score, and finite.
DIVERGED_VALUE = 1e4
_MAX_FAILURES_IN_A_ROW = 3
_DECLARED_DEAD, _DISK_FULL = "was declared dead; continued elsewhere", "the disk is full"
# Seconds between requests of a worker without a trial: others run the last ones, and may still die.
_IDLE_S = 1.0
# Seconds for the last sending to MLflow, at the end of the work and when the worker is asked to stop. The supervisor
# sends what is left.
_LAST_SENDING_S, _HURRIED_SENDING_S = 10.0, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnd:
    """How a trial ended. ``retires``: memory ran out, so that this lane must leave its share to the others."""

    state: TrialState
    values: Sequence[float] | None = None
    reason: str = ""
    paused_at: int | None = None  # the step of its rung, if WAITING
    traceback: str = ""
    retires: bool = False


def run_worker(job: WorkerJob, publish: Callable[[Event], None], should_stop: Callable[[], bool]) -> None:
    """The main function of a worker's process with any engine: load, connect, work, send what is left."""

    def say(text: str) -> None:
        publish(Said(text=text))

    def interrupt() -> None:
        if lanes.stop():
            raise Interrupted("stopped while scoring; saved")

    if job.code != code_sha256():
        raise SweepError(
            f"a worker has another version of the harness, in {harness.__path__[0]}",
            "Install the same version everywhere, do not change its files while a sweep runs, and start again.",
        )
    keep_memory()
    exact_arithmetic()
    use_threads(job.threads)
    device = torch.device(job.device)
    images = on_device(job.store.tensor(), device)
    lanes = Lanes(job.lanes, should_stop)
    scorers = Scorers(job.home, job.store, device, say, interrupt)
    rung, final = scorers.scorer(job.spec.scoring.rung), scorers.scorer(job.spec.scoring.final)
    publish(Ready())

    storage = open_storage(job.home, grace=grace_s(), say=say, stop=lanes.stop)
    study = optuna.load_study(study_name=job.spec.name, storage=storage)
    attrs = StudyAttrs.parse(study.user_attrs)
    protocols = {"final": asdict(final.protocol), "rung": asdict(rung.protocol)}
    agree_on_protocols(study, job.home, protocols, resume_anyway=job.resume_anyway)
    mirror = Mirror(lambda: MlflowTracker(new_client(job.home), attrs.mlflow_experiment, attrs.mlflow_parent), say)
    setup = WorkerSetup(
        job=job,
        trials=Trials(study, job.spec, job.home),
        images_NHWC=images,
        device=device,
        follow=mirror.follow,
        final=final,
        rung=rung,
        publish=publish,
        real_distance=real_distance(images),
        lanes=lanes,
        share=Share.from_environment(job.spec.name, attrs.uid),
    )
    try:
        lanes.run(lambda: work(setup), device, job.threads)
    finally:
        # Any other error ends the process with all its lanes; the supervisor sends what is left.
        if isinstance(sys.exception(), HarnessError | None):
            mirror.close(_HURRIED_SENDING_S if should_stop() else _LAST_SENDING_S)


def work(setup: WorkerSetup) -> None:
    """Run trials in one lane until COMPLETE and PRUNED ones reach the study's target, or memory runs out.

    A worker ends with its last lane, except worker 0, whose last lane takes trials again once no other trial runs.
    Raises SweepError after several failed trials in a row: the rest would fail, too.
    """
    failures: list[str] = []
    retired, prepared = False, setup.device.type != "cpu"  # on CUDA it takes seconds, and memory from other lanes
    while not (setup.lanes.stop() or (retired and setup.job.index > 0)):
        target = StudyAttrs.parse(setup.trials.study.user_attrs).target
        trial = setup.trials.ask(target, alone=retired)
        if trial is None:
            if setup.trials.is_done(target):
                return
            # The other workers' trials need the real images' features for their final scores.
            with suppress(Interrupted, OSError):  # the trial that needs them says what is wrong
                if not prepared and setup.final.prepare():
                    continue
            prepared = True
            threading.Event().wait(_IDLE_S)
            continue
        end = run_trial(trial, setup)
        if end.retires and setup.lanes.leave():
            return
        retired = retired or end.retires
        failed = end.state == TrialState.FAIL and not end.reason.startswith(INTERRUPTED)
        failures = [*failures, end.reason] if failed else []
        if len(failures) == _MAX_FAILURES_IN_A_ROW:
            raise SweepError(
                f"{len(failures)} trials in a row failed; the last: {failures[-1]}",
                "Each trial's reason is in the report and in MLflow. Run `harness doctor`, then start again.",
            )


def run_trial(trial: optuna.Trial, setup: WorkerSetup) -> TrialEnd:
    """Run one trial to a pause, or to its end state in the database and in its folder.

    Raises StorageLost and DiskFull if the trial is continued later, AcceleratorError if this process must end.
    """
    # Also what it took before it was paused.
    started = time.perf_counter() - (TrialAttrs.parse(trial.user_attrs).elapsed_s or 0.0)
    attempt: Attempt | None = None
    with Lease(trial) as lease:
        try:
            try:
                attempt = open_attempt(trial, setup, lease)
                end = TrialEnd(state=TrialState.COMPLETE, values=objective(trial, attempt, setup))
            except optuna.TrialPruned as pruned:
                end = TrialEnd(state=TrialState.PRUNED, reason=str(pruned))
            except Paused as paused:
                end = TrialEnd(state=TrialState.WAITING, reason=paused.problem, paused_at=paused.step)
            except (Diverged, Degenerate) as problem:
                end = TrialEnd(state=TrialState.PRUNED, reason=f"diverged: {problem.problem}")
                teach_divergence(trial, problem, setup.job.spec, attempt.history.kimg if attempt else 0.0)
            except Interrupted as stopped:
                end = TrialEnd(state=TrialState.FAIL, reason=f"{INTERRUPTED}: {stopped.problem}")
            except (Fenced, StorageLost, UpdateFinishedTrialError):
                raise
            except Exception as error:
                if _is_lost(error, setup.device):
                    raise
                end = failure(error, trial, setup)
            write_attrs(trial, TrialAttrs(elapsed_s=round(time.perf_counter() - started, 2)))
            lease.ending = True
            if end.paused_at is None:
                setup.trials.end(trial, end.state, end.values, end.reason)
            else:
                setup.trials.pause(trial, end.paused_at)
        except (Fenced, UpdateFinishedTrialError):
            lease.ending = False
            # Another attempt has the trial now; the next reconciliation closes this one's run.
            setup.publish(Ended(number=trial.number, state="FAIL", reason=_DECLARED_DEAD))
            return TrialEnd(state=TrialState.FAIL, reason=f"{INTERRUPTED}: {_DECLARED_DEAD}")
    _conclude(trial, end, attempt, setup)
    # A training and its step (on CUDA a graph with its memory) refer to each other: free them for the next one.
    gc.collect()
    if OOM in end.reason and setup.device.type == "cuda":
        with tensor_cores(FLOAT32, setup.device):  # while no other lane captures a graph
            torch.cuda.empty_cache()
    if _DISK_FULL in end.reason:
        raise DiskFull(
            end.reason.removeprefix(f"{INTERRUPTED}: "), "Free some space and start again; the sweep continues."
        )
    return end


def failure(error: Exception, trial: optuna.Trial, setup: WorkerSetup) -> TrialEnd:
    """The end of a trial that raised an error. If memory or disk ran out, another attempt may succeed."""
    details = without_secrets("".join(traceback.format_exception(error)))
    text, retires = first_line(error), False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason = f"{INTERRUPTED}: {_DISK_FULL}: {text}"
    elif not _is_oom(error):
        reason = f"{type(error).__name__}: {text}"
    else:
        # A GPU's memory is shared by the workers on it, the machine's by all.
        on_gpu = setup.device.type == "cuda" and not _is_oom_of_host(error)
        workers = setup.job.on_gpu if on_gpu else setup.job.workers
        others = workers * setup.lanes.open - 1
        retires = others > 0 and not TrialAttrs.parse(trial.user_attrs).oom
        reason = f"{OOM}: {text}"
        if retires:
            # Retry once with one lane fewer. Worker 0's last lane never retires for good, so one is always left.
            write_attrs(trial, TrialAttrs(oom=True))
            reason = f"{INTERRUPTED}: {OOM} alongside {others} other trials; queued again: {text}"
    return TrialEnd(state=TrialState.FAIL, reason=reason, traceback=details, retires=retires)


def _is_lost(error: Exception, device: torch.device) -> bool:
    """Whether this process has lost its device, so that another process must continue the trial.

    When one lane loses it, libraries may raise other errors in the other lanes.
    """
    if isinstance(error, torch.AcceleratorError):
        return not _is_oom(error)
    try:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
    except torch.AcceleratorError:
        return True
    return False


def _is_oom(error: Exception) -> bool:
    """Whether memory ran out, the machine's or a GPU's, in the words of CUDA, cuBLAS or cuDNN."""
    of_gpu = isinstance(error, RuntimeError) and any(text in str(error) for text in ("out of memory", "ALLOC_FAILED"))
    return of_gpu or isinstance(error, torch.OutOfMemoryError) or _is_oom_of_host(error)


def _is_oom_of_host(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def teach_divergence(trial: optuna.Trial, problem: Diverged | Degenerate, spec: ResolvedStudy, kimg: float) -> None:
    """Mark the configuration as bad: infeasible for the sampler, with a large finite value for everything else."""
    step = kimg_to_images(kimg) + 1
    if isinstance(problem, Diverged):
        hparams = TrialAttrs.parse(trial.user_attrs).hparams
        step = problem.step * int(hparams["batch_size"] * hparams["n_dis"])
    write_attrs(trial, TrialAttrs(diverged=True, diverged_step=getattr(problem, "step", None)))
    report(trial, DIVERGED_VALUE, step, spec)
    trial.set_constraint("diverged", 1.0)


def _conclude(trial: optuna.Trial, end: TrialEnd, attempt: Attempt | None, setup: WorkerSetup) -> None:
    """After the database, write the end to its folder, and report it to the supervisor."""
    if attempt is not None:
        attrs = TrialAttrs.parse(trial.user_attrs)
        # MLflow keeps the first value of an end, so a pause gets none.
        scores = {**attrs.scores, "train_s": attempt.history.trained_s()} if end.paused_at is None else {}
        if attrs.samplings:
            scores[setup.final.objective] = statistics.fmean(attrs.samplings)  # what ranks it
        tags = {"trial_state": end.state.name, "reason": end.reason, "error": end.traceback[-4000:]}
        try:
            attempt.end(end.state.name, scores, {name: text for name, text in tags.items() if text})
        except OSError:
            if _DISK_FULL not in end.reason:  # else there is no room for the curve; the checkpoint has it
                raise
    value = end.values[0] if end.values else None
    setup.publish(Ended(number=trial.number, state=end.state.name, value=value, reason=end.reason))
