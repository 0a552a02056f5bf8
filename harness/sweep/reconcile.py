"""After a crash or an outage: both databases and the journals are made to agree, and what was done is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from harness.errors import NotFoundError, StorageError, StorageLost, TrackingError
from harness.home import Home
from harness.store.attrs import StudyAttrs, TrialAttrs
from harness.store.database import open_storage
from harness.store.studies import database_exists, started_study, stored_spec
from harness.store.trials import Trials, trial_key
from harness.tracking.courier import Left, send_left
from harness.tracking.mlflow import MlflowTracker, client_for, open_experiment, without_password
from harness.tracking.tracker import STATUS, RunInfo, Tracker


def reconcile_home(name: str | None, home: Home) -> Iterator[str]:
    """Heal one study, or all of them and what trainings had yet to send; a line for each thing done.

    Raises:
        NotFoundError: there is no such study.
        StorageError: a harness that knows other keys wrote the study; where all are healed this is only said.
        TrackingError: MLflow does not answer; the database was healed all the same.
        StorageLost: the database was away for too long.
    """
    studies: list[optuna.Study] = []
    storage = open_storage(home) if database_exists(home) else None
    names = sorted(optuna.get_all_study_names(storage)) if storage else []
    for each in [name] if name else names:
        try:
            study = started_study(each, home, storage=storage)
            if not StudyAttrs.parse(study.user_attrs).mlflow_parent:
                raise NotFoundError(f"study {each} was created, and killed before its first trial", "Run it again.")
        except (NotFoundError, StorageError) as error:
            if name or isinstance(error, StorageLost):
                raise
            if isinstance(error, StorageError):  # another program made it
                yield f"{error.problem}; skipped"
            continue
        studies.append(study)
    # All of the database first: MLflow may be away.
    for study in studies:
        try:
            spec = stored_spec(study)
        except StorageError as error:  # of another version, which keeps no other study from being healed
            if name or isinstance(error, StorageLost):
                raise
            yield error.problem
            continue
        for line in Trials(study, spec, home).heal():
            yield f"{study.study_name}: {line}"
    if not studies and not any(home.spool.glob("*.jsonl")):
        return
    client = client_for(home)
    for study in studies:
        attrs = StudyAttrs.parse(study.user_attrs)
        tracker = MlflowTracker(client, attrs.mlflow_experiment, attrs.mlflow_parent)
        with _refusals(str(client.tracking_uri)):
            done = reconcile_tracker(study, tracker, home.spool)
        for line in done:
            yield f"{study.study_name}: {line}"
    if name is None:
        with _refusals(str(client.tracking_uri)):
            done = reconcile_trainings(
                home.spool, lambda experiment: MlflowTracker(client, open_experiment(client, home, experiment))
            )
        yield from done


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    try:
        yield
    except StorageLost:
        raise
    except Exception as error:
        problem = without_password((str(error).splitlines() or [type(error).__name__])[0], url)
        raise TrackingError(f"MLflow refused: {problem}", "What was kept stays on disk; try again.") from None


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
