"""After a crash or an outage: database and MLflow are made to agree, and what was done is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import Timeout
from optuna.trial import FrozenTrial

from harness.errors import NotFoundError, StorageError, StorageLost, TrackingError
from harness.home import Home
from harness.store.database import open_storage
from harness.store.records import StudyAttrs, TrialAttrs
from harness.store.studies import database_exists, started_study, stored_spec
from harness.store.trials import Trials, trial_key
from harness.tracking.journals import adopt_journals
from harness.tracking.mirror import Reflection, send_left
from harness.tracking.mlflow import STATUS, MlflowTracker, client_for, open_experiment, without_password
from harness.training.record import RunEnd, RunInfo, RunRecord
from harness.training.run_folder import RunFolder


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
    yield from adopt_journals(home)
    if not studies and not training_records(home):
        return
    client = client_for(home)
    for study in studies:
        attrs = StudyAttrs.parse(study.user_attrs)
        tracker = MlflowTracker(client, attrs.mlflow_experiment, attrs.mlflow_parent)
        with _refusals(str(client.tracking_uri)):
            done = reconcile_tracker(study, tracker, home)
        for line in done:
            yield f"{study.study_name}: {line}"
    if name is None:
        with _refusals(str(client.tracking_uri)):
            done = reconcile_trainings(
                home, lambda experiment: MlflowTracker(client, open_experiment(client, home, experiment))
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


def reconcile_tracker(study: optuna.Study, tracker: MlflowTracker, home: Home) -> list[str]:
    """Make MLflow agree with folders and database: one closed run a trial that ended, in the state of the trial.

    What dead processes had yet to show is sent first. Returns what was done, a line each.

    Args:
        study: healed.
        tracker: of the runs.
        home: where the trials' folders are, of this machine.

    Raises:
        Exception: whatever MLflow raises.
    """
    name, uid = study.study_name, StudyAttrs.parse(study.user_attrs).uid
    trials = {trial_key(name, trial.number): trial for trial in study.get_trials(deepcopy=False)}
    ended = {key: trial for key, trial in trials.items() if trial.state.is_finished()}

    def end_of(record: RunRecord) -> RunEnd | None:
        trial = ended.get(record.info.key)
        return trial_end(trial) if trial else None

    records = sorted(home.trial_dir(name, uid, 0).parent.glob("*/run-*.json"))
    done = [f"{key}: {what}" for key, what in send_left(records, lambda record: tracker, end_of).items()]
    done += [f"{key}: had two MLflow runs; the one with less in it was deleted" for key in tracker.drop_doubles()]
    runs = tracker.runs_by_key()
    for key, trial in ended.items():
        run_id, status = runs.get(key, ("", ""))
        if status != STATUS[trial.state.name] and _show(study, trial, run_id, tracker, home):
            done.append(f"trial {trial.number}: its MLflow run was closed as {trial.state.name}")
    return done


def reconcile_trainings(home: Home, tracker_of: Callable[[str], MlflowTracker]) -> list[str]:
    """Send what `harness train` had yet to send, of trainings that no process is at; a line for each.

    Args:
        home: where their folders are.
        tracker_of: the tracker of an experiment, by name.

    Raises:
        Exception: whatever MLflow raises.
    """
    sent = send_left(training_records(home), lambda record: tracker_of(record.info.experiment))
    return [f"{key}: {what}" for key, what in sent.items()]


def training_records(home: Home) -> list[Path]:
    """The records of single trainings."""
    return sorted(home.within("trainings").glob("*/run-*.json"))


def trial_end(trial: FrozenTrial) -> RunEnd:
    """How a trial's run ended, as the database has it."""
    attrs, state = TrialAttrs.parse(trial.user_attrs), trial.state.name
    return RunEnd(state=state, scores=attrs.scores, tags={"trial_state": state, "reason": attrs.reason})


def _show(study: optuna.Study, trial: FrozenTrial, run_id: str, tracker: MlflowTracker, home: Home) -> bool:
    """Show a trial that ended, and whose run is open, deleted, or was never opened; whether it was."""
    end, folder = trial_end(trial), RunFolder(home.root / TrialAttrs.parse(trial.user_attrs).folder)
    record = _record(study, trial)
    if folder.path == home.root or not folder.path.is_dir():  # another machine's
        if not run_id:
            run_id = tracker.start(record.info)
            tracker.log(run_id, record.points([]))
        tracker.end(run_id, end.state, scores=end.scores, tags=end.tags)
        return True
    path = next(iter(folder.records()), folder.record(record.kimg))
    reflection = Reflection(path)
    try:
        with reflection.lock.acquire(timeout=0):
            if not path.exists():  # an earlier version trained it
                record.write(path)
            if not run_id:
                reflection.restore(tracker)
            reflection.send_again(tracker, end)
    except Timeout:  # its worker lives, and sends it
        return False
    return True


def _record(study: optuna.Study, trial: FrozenTrial) -> RunRecord:
    """What the database knows of a trial's run."""
    attrs, of_study = TrialAttrs.parse(trial.user_attrs), StudyAttrs.parse(study.user_attrs)
    marks = {step: {of_study.rung_metric: score} for step, score in trial.intermediate_values.items()}
    if attrs.diverged and marks:
        del marks[max(marks)]  # it stands for the divergence
    for step, values in attrs.watched.items():
        marks[step] = {**marks.get(step, {}), **values}
    named = {"seed": attrs.seed, "preset": attrs.preset, "arm": attrs.arm, "protocol_hash": attrs.protocol_hash}
    tags = {name: str(value) for name, value in named.items() if value not in (None, "")}
    info = RunInfo(
        key=trial_key(study.study_name, trial.number),
        name=f"trial {trial.number}",
        experiment=study.study_name,
        params=attrs.hparams or trial.params,
        tags={**of_study.environment, **tags, "role": "trial", "trial": str(trial.number)},
        dataset=of_study.dataset.get("name", ""),
        dataset_digest=of_study.dataset.get("fingerprint", ""),
        dataset_source=of_study.dataset.get("source", ""),
    )
    started = trial.datetime_start
    opened_ms = int(started.timestamp() * 1000) if started else 0
    kimg = float(of_study.spec.get("budget", {}).get("kimg", 0.0))
    return RunRecord(info=info, kimg=kimg, opened_ms=opened_ms, marks=marks)
