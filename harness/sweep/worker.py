"""A worker: asks the study for trials and runs them, one after the other, until the budget is reached."""

from __future__ import annotations

import traceback
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.errors import Diverged, SweepError
from harness.study.spec import StudySpec
from harness.sweep.objective import Degenerate, Env, Interrupted, objective
from harness.sweep.storage import ask, ask_lock, images

# What a trial that diverged teaches the sampler: worse than any real score, and finite.
DIVERGED_VALUE = 1e4
# A trial whose worker dies this often is not tried again.
MAX_CRASHES = 3
_MAX_FAILURES_IN_A_ROW = 3
# Reasons of a FAIL that is continued by another attempt.
INTERRUPTED, KILLED = "interrupted", "its worker was killed"


def work(study: optuna.Study, spec: StudySpec, env: Env, target: int) -> None:
    """Run trials until the study has its target or ``env.stop()`` says so.

    Raises:
        SweepError: several trials in a row failed for reasons of their own; going on would burn the budget.
    """
    failures: list[str] = []
    while not env.stop():
        trial = ask(study, spec, env.home, target)
        if trial is None:
            return
        reason = run_trial(study, trial, spec, env)
        failures = [*failures, reason] if reason else []
        if len(failures) == _MAX_FAILURES_IN_A_ROW:
            raise SweepError(
                f"{len(failures)} trials in a row failed; the last: {failures[-1]}",
                "Each trial's reason is in the report and in MLflow. Run `harness doctor`, then start again.",
            )


def run_trial(study: optuna.Study, trial: optuna.Trial, spec: StudySpec, env: Env) -> str:
    """Run one trial to its end state in the database and in the tracker; return why it failed, or an empty string."""
    env.attempt = None
    state, value, reason, error_text = TrialState.COMPLETE, None, "", ""
    try:
        value = objective(trial, spec, env)
    except optuna.TrialPruned as pruned:
        state, reason = TrialState.PRUNED, str(pruned)
    except (Diverged, Degenerate) as problem:
        state, reason = TrialState.PRUNED, f"diverged: {problem.problem}"
        teach_divergence(trial, problem, env)
    except Interrupted as stopped:
        state, reason = TrialState.FAIL, f"{INTERRUPTED}: {stopped.problem}"
    except Exception as error:
        state, reason = TrialState.FAIL, f"{type(error).__name__}: {error}"
        error_text = traceback.format_exc()
    finish(study, trial, state, value, reason, error_text, env)
    return reason if state == TrialState.FAIL and not reason.startswith(INTERRUPTED) else ""


def teach_divergence(trial: optuna.Trial, problem: Diverged | Degenerate, env: Env) -> None:
    """Mark the configuration as bad: infeasible for the sampler, with a large finite value for everybody else."""
    kimg = env.attempt.curve[-1]["kimg"] if env.attempt and env.attempt.curve else 0.0
    step = images(kimg) + 1
    if isinstance(problem, Diverged):
        trial.set_user_attr("diverged_step", problem.step)
        step = problem.step * int(trial.user_attrs["hparams"]["batch_size"] * trial.user_attrs["hparams"]["n_dis"])
    trial.set_user_attr("diverged", True)
    trial.report(DIVERGED_VALUE, step)
    trial.set_constraint("diverged", 1.0)


def finish(
    study: optuna.Study,
    trial: optuna.Trial,
    state: TrialState,
    value: float | None,
    reason: str,
    error_text: str,
    env: Env,
) -> None:
    """Tell the database first, for it is the truth; then the tracker."""
    trial.set_user_attr("reason", reason)
    with ask_lock(env.home):
        study.tell(trial, value, state=state)
        if reason.startswith(INTERRUPTED):
            requeue(study, study.trials[trial.number], crashed=False)
    attempt = env.attempt
    if attempt is not None:
        scores = dict(trial.user_attrs.get("scores", {}))
        tags = {"trial_state": state.name, "reason": reason, "error": error_text[-4000:]}
        attempt.end(state.name, scores, {name: text for name, text in tags.items() if text})
    env.publish(
        {
            "number": trial.number,
            "state": state.name,
            "value": value,
            "reason": reason,
            "kimg": attempt.curve[-1]["kimg"] if attempt and attempt.curve else 0.0,
        }
    )


def requeue(study: optuna.Study, trial: FrozenTrial, *, crashed: bool) -> bool:
    """Enqueue a trial again, to be continued from its newest checkpoint; False where it crashed too often."""
    attrs = trial.user_attrs
    crashes = int(attrs.get("crashes", 0)) + crashed
    if crashes >= MAX_CRASHES:
        return False
    kept: dict[str, Any] = {
        name: attrs[name] for name in ("preset", "recipe", "variant", "overrides", "own_images") if name in attrs
    }
    # A preset that was killed before it suggested anything has its parameters only where Optuna enqueued them.
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    root = int(attrs.get("root", trial.number))
    study.enqueue_trial(params, user_attrs={**kept, "root": root, "crashes": crashes, "retry_of": trial.number})
    return True
