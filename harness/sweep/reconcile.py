"""After a crash: trials whose worker is gone are failed and queued again, and MLflow is made to agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.home import Home
from harness.sweep.processes import is_gone
from harness.sweep.storage import ask_lock
from harness.sweep.worker import INTERRUPTED, KILLED, requeue
from harness.tracking.tracker import STATUS, RunInfo, Tracker


def reconcile(study: optuna.Study, home: Home, tracker: Tracker, *, crashed: bool = True) -> list[str]:
    """Heal what a killed process left behind; return what was done, a line each.

    A RUNNING trial of a process of this machine that is no more is told FAIL. Every trial that was killed or
    interrupted and that no other one continues is queued again. Then every finished trial has one closed run.

    Args:
        study: the study.
        home: where its lock is.
        tracker: whose runs are closed.
        crashed: whether a killed trial counts towards the crashes after which it is given up.
    """
    done: list[str] = []
    with ask_lock(home):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if is_gone(trial.user_attrs.get("worker")):
                study._storage.set_trial_user_attr(
                    trial._trial_id, "reason", KILLED if crashed else f"{INTERRUPTED}: {KILLED}"
                )
                study.tell(trial.number, state=TrialState.FAIL)
                done.append(f"trial {trial.number}: its worker is gone, so it was failed")
        done += _queue_abandoned(study)
    return done + reconcile_tracker(study, tracker)


def _queue_abandoned(study: optuna.Study) -> list[str]:
    trials = study.get_trials(deepcopy=False)
    continued = {trial.user_attrs.get("retry_of") for trial in trials}
    done = []
    for trial in trials:
        reason = str(trial.user_attrs.get("reason", ""))
        if (
            trial.number not in continued
            and trial.state == TrialState.FAIL
            and reason.startswith((KILLED, INTERRUPTED))
        ):
            queued = requeue(study, trial, crashed=reason.startswith(KILLED))
            done += [f"trial {trial.number}: queued to continue"] if queued else []
    return done


def reconcile_tracker(study: optuna.Study, tracker: Tracker) -> list[str]:
    """Make the tracker's runs agree with the database: one run a trial that ended, in the state of the trial."""
    done: list[str] = []
    runs = tracker.runs_by_key()
    for trial in study.get_trials(deepcopy=False):
        state = trial.state.name
        key = f"{study.study_name}/{trial.number}"
        run_id, status = runs.get(key, ("", ""))
        if not trial.state.is_finished() or status == STATUS[state]:
            continue
        run_id = run_id or tracker.start(_late_run(key, trial))
        tags = {"trial_state": state, "reason": str(trial.user_attrs.get("reason", ""))}
        tracker.end(run_id, state, scores=trial.user_attrs.get("scores", {}), tags=tags)
        done.append(f"trial {trial.number}: its MLflow run was closed as {state}")
    return done


def _late_run(key: str, trial: FrozenTrial) -> RunInfo:
    """The run of a trial that ended before it could open one."""
    params: Mapping[str, Any] = trial.user_attrs.get("hparams", trial.params)
    return RunInfo(
        key=key, name=f"trial {trial.number}", params=params, tags={"role": "trial", "trial": str(trial.number)}
    )
