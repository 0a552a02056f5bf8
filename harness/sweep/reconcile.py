"""Database, folders and MLflow made to agree: a study's run, and what crashes, outages and earlier versions left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from harness.errors import NotFoundError, StorageError, StorageLost, TrackingError, without_secrets
from harness.findings.ranking import rank
from harness.home import Home
from harness.machine.provenance import provenance
from harness.store.database import open_storage
from harness.store.records import StudyAttrs, TrialAttrs
from harness.store.studies import database_exists, started_study, stored_spec, study_to_record
from harness.store.trials import Trials, finished_count, trial_key
from harness.tracking.mirror import Reflection, send_left
from harness.tracking.mlflow import (
    STATUS,
    MlflowTracker,
    answers,
    client_for,
    new_client,
    open_experiment,
    without_password,
)
from harness.training.run_folder import RunEnd, RunFolder, RunInfo, RunRecord


class ParentRun:
    """The study's run in MLflow, above those of its trials. MLflow may be away once it is known."""

    def __init__(self, trials: Trials, home: Home, device: str, say: Callable[[str], None]) -> None:
        self.trials, self.home, self.device, self.say = trials, home, device, say
        self.tags = {**provenance(device), "study": trials.spec.name, "spec_hash": trials.spec.spec_hash}

    def open(self) -> Self:
        """Open or create experiment and run; raises TrackingError where MLflow is away and the study never had one."""
        spec, attrs = self.trials.spec, StudyAttrs.parse(self.trials.study.user_attrs)
        key, tags = f"{spec.name}/sweep/{attrs.uid}", {**self.tags, "role": "sweep"}
        info = RunInfo(key=key, name=f"sweep {spec.name}", experiment=spec.name, tags=tags)
        try:
            client = client_for(self.home)
            with answers(self.home):
                self.tracker = MlflowTracker(client, open_experiment(client, self.home, spec.name, spec.description))
                self.run_id = self.tracker.start(info)
                return self
        except TrackingError as error:
            if not attrs.mlflow_parent:
                raise
            self.say(f"{error.problem}; the sweep continues, and MLflow gets everything when it is back")
            return self.known()

    def known(self) -> Self:
        """Of a study that was started before; MLflow is not asked."""
        attrs = StudyAttrs.parse(self.trials.study.user_attrs)
        self.tracker, self.run_id = MlflowTracker(new_client(self.home), attrs.mlflow_experiment), attrs.mlflow_parent
        return self

    def heal(self, *, crashed: bool) -> None:
        """Heal the database, then MLflow as far as it answers."""
        for line in (*self.trials.heal(crashed=crashed), *adopt_journals(self.home)):
            self.say(line)
        children = MlflowTracker(self.tracker.client, self.tracker.experiment_id, self.run_id)
        try:
            for line in reconcile_tracker(self.trials.study, children, self.home):
                self.say(line)
        except StorageLost:
            raise
        except Exception as error:  # whatever the tracking library raises: the next start heals it
            self._away(error)

    def end(self, target: int) -> None:
        """Close the run, with the best score."""
        ended, scores = finished_count(self.trials.study), {}
        try:
            record = study_to_record(self.trials.study)
            if ended >= target and (best := rank(record, top=1).trials):
                metric = f"best_{record.attrs.final_metric}"
                scores = {metric: best[0].values[0], "trials_complete": float(len(record.complete))}
            # As a step: MLflow shows the last one's, also where more trials were asked for since.
            state = "COMPLETE" if ended >= target else "FAIL"
            self.tracker.end(self.run_id, state, scores=scores, tags={}, step=ended)
        except Exception as error:
            self._away(error)

    def _away(self, error: Exception) -> None:
        lines = str(error).strip().splitlines() or [""]
        self.say(
            f"MLflow does not answer ({type(error).__name__}: {without_secrets(lines[0])[:120]}); "
            "`harness reconcile` makes it agree"
        )


def reconcile_home(name: str | None, home: Home) -> Iterator[str]:
    """Heal one study, or all of them and what trainings had yet to send; a line for each thing done.

    Raises StorageError where a harness that knows other keys wrote the study; where all are healed this is only said.
    Raises TrackingError where MLflow does not answer; the database was healed all the same.
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
    try:
        for study in studies:
            attrs = StudyAttrs.parse(study.user_attrs)
            tracker = MlflowTracker(client, attrs.mlflow_experiment, attrs.mlflow_parent)
            for line in reconcile_tracker(study, tracker, home):
                yield f"{study.study_name}: {line}"
        if name is None:  # trainings that no process is at
            sent = send_left(
                training_records(home),
                lambda record: MlflowTracker(client, open_experiment(client, home, record.info.experiment)),
            )
            for key, what in sent.items():
                yield f"{key}: {what}"
    except StorageLost:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        problem = without_password(first, str(client.tracking_uri))
        raise TrackingError(f"MLflow refused: {problem}", "What was kept stays on disk; try again.") from None


def training_records(home: Home) -> list[Path]:
    return sorted(home.within("trainings").glob("*/run-*.json"))


def reconcile_tracker(study: optuna.Study, tracker: MlflowTracker, home: Home) -> list[str]:
    """Make MLflow agree with folders and a healed database: one closed run a trial that ended, in the trial's state.

    What dead processes had yet to show is sent first. Returns what was done, a line each; raises whatever MLflow does.
    """
    name, uid = study.study_name, StudyAttrs.parse(study.user_attrs).uid
    drop_checkpoints(study, home)
    trials = {trial_key(name, trial.number): trial for trial in study.get_trials(deepcopy=False)}
    ended = {key: trial for key, trial in trials.items() if trial.state.is_finished()}

    def end_of(record: RunRecord) -> RunEnd | None:
        trial = ended.get(record.info.key)
        return _trial_end(trial) if trial else None

    records = sorted(home.trial_dir(name, uid, 0).parent.glob("*/run-*.json"))
    done = [f"{key}: {what}" for key, what in send_left(records, lambda record: tracker, end_of).items()]
    done += [f"{key}: had two MLflow runs; the one with less in it was deleted" for key in tracker.drop_doubles()]
    runs = tracker.runs_by_key()
    for key, trial in ended.items():
        run_id, status = runs.get(key, ("", ""))
        if status == STATUS[trial.state.name] or not _show(study, trial, run_id, tracker, home):
            continue
        if status != STATUS["WAITING"]:  # else it was paused, and the study has ended: nothing was amiss
            done.append(f"trial {trial.number}: its MLflow run was closed as {trial.state.name}")
    return done


def drop_checkpoints(study: optuna.Study, home: Home) -> None:
    """Remove the checkpoints of trials that were pruned while they were paused: nothing continues from them."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)):
        attrs = TrialAttrs.parse(trial.user_attrs)
        if attrs.paused_at is not None and attrs.folder:
            for checkpoint in RunFolder(home.root / attrs.folder).checkpoints():
                checkpoint.unlink(missing_ok=True)


def _trial_end(trial: FrozenTrial) -> RunEnd:
    attrs, state = TrialAttrs.parse(trial.user_attrs), trial.state.name
    return RunEnd(state=state, scores=attrs.scores, tags={"trial_state": state, "reason": attrs.reason})


def _show(study: optuna.Study, trial: FrozenTrial, run_id: str, tracker: MlflowTracker, home: Home) -> bool:
    """Show a trial that ended, and whose run is open, deleted, or was never opened; whether it was."""
    end, folder = _trial_end(trial), RunFolder(home.root / TrialAttrs.parse(trial.user_attrs).folder)
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


def adopt_journals(home: Home) -> list[str]:
    """Remove the journals in ``runs/spool``, where earlier versions kept what MLflow had yet to get; a line says so.

    Their runs are sent from folders and database. A single training is in no database: its record is made of its
    journal. A journal whose process lives is left to it.
    """
    spool = home.root / "spool"
    if not spool.is_dir():
        return []
    journals = 0
    with FileLock(home.root / ".spool.lock"):
        for journal in sorted(spool.glob("*.jsonl")):
            with suppress(Timeout), FileLock(journal.with_suffix(".owner"), timeout=0):
                lines = []
                for line in journal.read_bytes().splitlines():
                    with suppress(ValueError):  # half a line at the end, or a bad block of the disk
                        lines.append(json.loads(line))
                _adopt(lines, home)
                journal.unlink()
                journals += 1
        if not any(spool.glob("*.jsonl")):
            shutil.rmtree(spool, ignore_errors=True)
    said = f"{journals} journals of an earlier version removed: MLflow gets it from the runs' folders"
    return [said] if journals else []


def _adopt(lines: list[dict[str, Any]], home: Home) -> None:
    """Write the record of a training, if the journal is of one, it has a folder, and nothing continued it since."""
    info = lines[0]["info"] if lines and lines[0].get("op") == "start" else {"key": ""}
    experiment, is_training, rest = str(info["key"]).partition("/training/")
    name, _, kimg = rest.rpartition("/")
    if not is_training or not (folder := RunFolder(home.training_dir(name))).path.is_dir():
        return
    curve, marks, end = folder.read_curve(), dict[int, dict[str, float]](), None
    of_curve = {name for row in curve for name in row}
    for line in lines[1:]:
        for name, value, step in line.get("points", []):
            if name not in of_curve:
                marks.setdefault(step, {})[name] = value
        if line["op"] == "end":
            end = RunEnd(state=line["state"], scores=line["scores"], tags=line["tags"])
    if not (path := folder.record(float(kimg))).exists():
        info = RunInfo(**info, experiment=experiment)
        RunRecord(info=info, kimg=float(kimg), opened_ms=int(lines[0]["at"]), marks=marks, end=end).write(path)
