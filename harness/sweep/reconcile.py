"""After a crash or an outage: both databases and the journals are made to agree, and what was done is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from harness.store.attrs import TrialAttrs
from harness.store.trials import Trials, trial_key
from harness.tracking.courier import Left, send_left
from harness.tracking.tracker import STATUS, RunInfo, Tracker


def reconcile(trials: Trials, tracker: Tracker, spool: Path | None = None, *, crashed: bool = True) -> list[str]:
    """Heal what killed processes left behind; return what was done, a line each.

    A RUNNING trial whose worker is gone is failed; killed and interrupted ones that no other continues are queued.
    What dead processes had yet to send to the tracker is sent. Then every ended trial has one closed run.

    Args:
        trials: of the study.
        tracker: whose runs are made to agree.
        spool: folder of the journals.
        crashed: whether a killed trial counts towards the crashes after which it is given up.

    Raises:
        Exception: whatever the tracker raises, after the database was healed.
    """
    done = trials.heal(crashed=crashed)
    return done + reconcile_tracker(trials.study, tracker, spool)


def reconcile_tracker(study: optuna.Study, tracker: Tracker, spool: Path | None = None) -> list[str]:
    """Make the tracker agree with the database: one run a trial that ended, in the state of the trial."""
    done: list[str] = []
    left = Left()
    if spool is not None:
        mine = f"{study.study_name}/"
        left = send_left(spool, lambda key: tracker if _is_trial(key, mine) else None)
        done += left.lines
    done += [f"{key}: had two MLflow runs; the one with less in it was deleted" for key in tracker.drop_doubles()]
    runs = tracker.runs_by_key()
    ended = set()
    for trial in study.get_trials(deepcopy=False):
        state, key = trial.state.name, trial_key(study.study_name, trial.number)
        run_id, status = runs.get(key, ("", ""))
        if not trial.state.is_finished():
            continue
        ended.add(key)
        if status == STATUS[state]:
            continue
        run_id = run_id or tracker.start(_late_run(key, trial))
        attrs = TrialAttrs.parse(trial.user_attrs)
        tracker.end(run_id, state, scores=attrs.scores, tags={"trial_state": state, "reason": attrs.reason})
        done.append(f"trial {trial.number}: its MLflow run was closed as {state}")
    for delivery in left.torn:
        if delivery.key() in ended:  # closed above; nothing more will be written to it
            delivery.remove()
    return done


def reconcile_trainings(spool: Path, tracker_of: Callable[[str], Tracker]) -> list[str]:
    """Send what `harness train` had yet to send, of trainings that no process is at; a line for each.

    Args:
        spool: folder of the journals.
        tracker_of: the tracker of an experiment, by name.

    Raises:
        Exception: whatever the tracker raises.
    """

    def tracker(key: str) -> Tracker | None:
        experiment, is_training, _ = key.partition("/training/")
        return tracker_of(experiment) if is_training else None

    return send_left(spool, tracker).lines


def _is_trial(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and key.removeprefix(prefix).isdecimal()


def _late_run(key: str, trial: FrozenTrial) -> RunInfo:
    """The run of a trial that ended before it could open one."""
    params: Mapping[str, Any] = TrialAttrs.parse(trial.user_attrs).hparams or trial.params
    return RunInfo(
        key=key, name=f"trial {trial.number}", params=params, tags={"role": "trial", "trial": str(trial.number)}
    )
