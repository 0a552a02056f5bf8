"""A worker: asks the study for trials and runs them, one after the other, until the budget is reached."""

from __future__ import annotations

import errno
import gc
import statistics
import time
import traceback
from threading import Event

import optuna
import torch
from optuna.trial import TrialState

from harness.errors import (
    DiskFull,
    Diverged,
    Fenced,
    Interrupted,
    StorageLost,
    SweepError,
    without_secrets,
)
from harness.spec.resolved import ResolvedStudy
from harness.store.attrs import StudyAttrs, TrialAttrs
from harness.store.lease import Lease, write_attrs
from harness.store.samplers import kimg_to_images
from harness.store.trials import INTERRUPTED, OOM
from harness.sweep.objective import Degenerate, Env, objective, report

# What a trial that diverged teaches the sampler: worse than any real score, and finite.
DIVERGED_VALUE = 1e4
_MAX_FAILURES_IN_A_ROW = 3
_DISK_FULL = "the disk is full"
# Seconds between questions of a worker without a trial: others run the last ones, and may yet die.
_IDLE_S = 1.0


def work(study: optuna.Study, spec: ResolvedStudy, env: Env, target: int | None = None) -> None:
    """Run trials until the study has its target or ``env.stop()`` says so.

    Args:
        study: the study.
        spec: its file.
        env: what trials need.
        target: COMPLETE and PRUNED trials wanted; None is the study's own, which a later start may raise.

    Raises:
        SweepError: several trials in a row failed for reasons of their own; going on would burn the budget.
        StorageLost: the database was away for longer than the grace period.
        DiskFull: a checkpoint could not be written; the trial is continued later.
    """
    failures: list[str] = []
    while not (env.stop() or (env.retired and env.index > 0)):
        wanted = StudyAttrs.parse(study.user_attrs).target if target is None else target
        trial = env.trials.ask(wanted, alone=env.retired)
        if trial is None:
            if env.trials.is_done(wanted):
                return
            Event().wait(_IDLE_S)
            continue
        reason = run_trial(trial, spec, env)
        failures = [*failures, reason] if reason else []
        if len(failures) == _MAX_FAILURES_IN_A_ROW:
            raise SweepError(
                f"{len(failures)} trials in a row failed; the last: {failures[-1]}",
                "Each trial's reason is in the report and in MLflow. Run `harness doctor`, then start again.",
            )


def run_trial(trial: optuna.Trial, spec: ResolvedStudy, env: Env) -> str:
    """Run one trial to its end state in the database and in the tracker; return why it failed, or an empty string.

    Raises:
        StorageLost: the database was away for longer than the grace period; the trial is continued later.
        AcceleratorError: the device is lost to this process, which must end.
    """
    env.attempt = None
    started = time.perf_counter()
    values: list[float] | None = None
    state, reason, error_text = TrialState.COMPLETE, "", ""
    with Lease(trial) as lease:
        try:
            try:
                values = objective(trial, spec, env, lease)
            except optuna.TrialPruned as pruned:
                state, reason = TrialState.PRUNED, str(pruned)
            except (Diverged, Degenerate) as problem:
                state, reason = TrialState.PRUNED, f"diverged: {problem.problem}"
                teach_divergence(trial, problem, env)
            except Interrupted as stopped:
                state, reason = TrialState.FAIL, f"{INTERRUPTED}: {stopped.problem}"
            except (Fenced, StorageLost, optuna.exceptions.UpdateFinishedTrialError):
                raise
            except Exception as error:
                if isinstance(error, torch.AcceleratorError) and not _is_oom(error):
                    raise  # the device will do nothing more for this process: another one continues the trial
                state, reason = TrialState.FAIL, _why(error, trial, env)
                error_text = without_secrets(traceback.format_exc())
            write_attrs(trial, TrialAttrs(elapsed_s=round(time.perf_counter() - started, 2)))
            lease.ending = True
            env.trials.end(trial, state, values, reason)
        except (Fenced, optuna.exceptions.UpdateFinishedTrialError):
            lease.ending = False
            # Another attempt has the trial now; this one's run is closed by whoever reconciles.
            env.publish({"number": trial.number, "state": "FAIL", "reason": "was declared dead; continued elsewhere"})
            return ""
    _conclude(trial, state, values, reason, error_text, env)
    # A training and its step, on CUDA a graph with all of its memory, hold on to each other; the next needs the room.
    gc.collect()
    if OOM in reason and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if _DISK_FULL in reason:
        raise DiskFull(
            reason.removeprefix(f"{INTERRUPTED}: "), "Free some space and start again: it goes on from there."
        )
    return reason if state == TrialState.FAIL and not reason.startswith(INTERRUPTED) else ""


def _why(error: Exception, trial: optuna.Trial, env: Env) -> str:
    """A failed trial's reason. Where memory or disk ran out, it is worth another attempt."""
    lines = str(error).strip().splitlines()
    text = without_secrets(lines[0]) if lines else type(error).__name__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{INTERRUPTED}: {_DISK_FULL}: {text}"
    if not _is_oom(error):
        return f"{type(error).__name__}: {text}"
    # A GPU's memory is shared with the workers on it, the machine's with all.
    on_gpu = env.device.type == "cuda" and not _is_oom_of_host(error)
    others = (env.sharing if on_gpu else env.workers) - 1
    if others and not TrialAttrs.parse(trial.user_attrs).oom:
        # Beside fewer neighbours it may fit: once more, with this worker gone. The first stays, for when others are.
        write_attrs(trial, TrialAttrs(oom=True))
        env.retired = True
        return f"{INTERRUPTED}: {OOM} beside {others} other workers; queued again: {text}"
    return f"{OOM}: {text}"


def _is_oom(error: Exception) -> bool:
    # Of CUDA, and of cuBLAS and cuDNN.
    said = ("out of memory", "ALLOC_FAILED")
    return (
        _is_oom_of_host(error)
        or isinstance(error, torch.OutOfMemoryError)
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in said))
    )


def _is_oom_of_host(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def teach_divergence(trial: optuna.Trial, problem: Diverged | Degenerate, env: Env) -> None:
    """Mark the configuration as bad: infeasible for the sampler, with a large finite value for everybody else."""
    kimg = env.attempt.curve[-1]["kimg"] if env.attempt and env.attempt.curve else 0.0
    step = kimg_to_images(kimg) + 1
    if isinstance(problem, Diverged):
        hparams = TrialAttrs.parse(trial.user_attrs).hparams
        step = problem.step * int(hparams["batch_size"] * hparams["n_dis"])
    write_attrs(trial, TrialAttrs(diverged=True, diverged_step=getattr(problem, "step", None)))
    report(trial, DIVERGED_VALUE, step)
    trial.set_constraint("diverged", 1.0)


def _conclude(
    trial: optuna.Trial, state: TrialState, values: list[float] | None, reason: str, error_text: str, env: Env
) -> None:
    """After the database, which is the truth, tell the tracker and the supervisor."""
    attempt = env.attempt
    if attempt is not None:
        attrs = TrialAttrs.parse(trial.user_attrs)
        scores = {**attrs.scores, "train_s": attempt.trained_s()}
        if attrs.samplings:
            scores[env.final.objective] = statistics.fmean(attrs.samplings)  # what ranks it
        tags = {"trial_state": state.name, "reason": reason, "error": error_text[-4000:]}
        try:
            attempt.end(state.name, scores, {name: text for name, text in tags.items() if text})
        except OSError:
            if _DISK_FULL not in reason:  # there is no room for the curve either; the checkpoint has it
                raise
    env.publish(
        {
            "number": trial.number,
            "state": state.name,
            "value": values[0] if values else None,
            "reason": reason,
            "kimg": attempt.curve[-1]["kimg"] if attempt and attempt.curve else 0.0,
        }
    )
