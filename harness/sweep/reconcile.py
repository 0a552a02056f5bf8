"""Make database, folders and MLflow agree: a study's run, and what crashes, outages and earlier versions left."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Self

import optuna
from filelock import Timeout
from optuna.trial import FrozenTrial, TrialState

from harness.errors import NotFoundError, StorageError, StorageLost, TrackingError, first_line
from harness.findings.ranking import leading
from harness.gan.hparams import canonical_json
from harness.home import Home
from harness.machine.provenance import provenance
from harness.spec.resolved import compared_params
from harness.store.database import open_storage, write_study_attrs
from harness.store.records import StudyAttrs, StudyRecord, TrialAttrs
from harness.store.studies import database_exists, find_confirmation, started_study, stored_spec, study_to_record
from harness.store.trials import Trials, finished_count, trial_key
from harness.sweep.journals import adopt_journals
from harness.text import number
from harness.tracking.client import answers, client_for, make_database, new_client, within, without_password
from harness.tracking.mirror import Reflection, lacks_files, send_left
from harness.tracking.mlflow import STATUS, MlflowTracker, find_run, open_experiment
from harness.tracking.registry import register
from harness.tracking.views import write_views
from harness.training.run_folder import RunEnd, RunFolder, RunInfo, RunRecord, named_marks

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Seconds that a start waits for MLflow: for a new study, which needs a run there, and for one that has a run.
_NEW_S, _KNOWN_S = 30.0, 10.0
# Seconds that the end waits for MLflow, and that MLflow then has while the report is written.
_WAIT_S, _LAST_S = 10.0, 60.0


class ParentRun:
    """The study's run in MLflow, the parent of its trials' runs. Once it exists nothing waits for MLflow."""

    def __init__(
        self, trials: Trials, home: Home, device: str, say: Callable[[str], None], stop_level: Callable[[], int] = int
    ) -> None:
        self.trials, self.home, self.device, self.say, self.stop_level = trials, home, device, say, stop_level
        self.tags = {**provenance(device), "study": trials.spec.name, "spec_hash": trials.spec.spec_hash}
        self._agreeing: Thread | None = None

    def open(self) -> Self:
        """Open or create experiment and run; a TrackingError if MLflow is away and the study never had a run."""
        known = bool(StudyAttrs.parse(self.trials.study.user_attrs).mlflow_parent)
        try:
            with answers(self.home):
                make_database(self.home)
                opened = within(_KNOWN_S if known else _NEW_S, self._open, lambda: self.stop_level() > 1)
            self.tracker, self.run_id = opened
            return self
        except TrackingError as error:
            if not known:
                raise
            self.say(f"{error.problem}; the sweep continues, and MLflow gets everything when it is back")
            return self.known()

    def _open(self) -> tuple[MlflowTracker, str]:
        spec, attrs = self.trials.spec, StudyAttrs.parse(self.trials.study.user_attrs)
        key, tags = f"{spec.name}/sweep/{attrs.uid}", {**self.tags, "role": "sweep"}
        info = RunInfo(key=key, name=f"sweep {spec.name}", experiment=spec.name, tags=tags)
        client, parent = client_for(self.home), attrs.mlflow_parent
        experiment = open_experiment(client, self.home, spec.name, spec.description, of_run=parent, say=self.say)
        write_views(client, experiment, spec)
        tracker = MlflowTracker(client, experiment)
        with suppress(KeyError):
            if parent and tracker.revive(parent):
                self.say("the study's run had been deleted in MLflow; restored")
        return tracker, tracker.start(info, parent)

    def known(self) -> Self:
        """Use the run of a study that was started before, without asking MLflow."""
        attrs = StudyAttrs.parse(self.trials.study.user_attrs)
        self.tracker, self.run_id = MlflowTracker(new_client(self.home), attrs.mlflow_experiment), attrs.mlflow_parent
        return self

    def heal(self, *, crashed: bool) -> None:
        """Heal the database; then MLflow, in a thread, as far as it answers."""
        for line in (*self.trials.heal(crashed=crashed), *adopt_journals(self.home)):
            self.say(line)
        if self._agreeing is None or not self._agreeing.is_alive():
            self._agreeing = Thread(target=self._agree, name="reconcile", daemon=True)
            self._agreeing.start()

    def close(self, target: int | None) -> None:
        """Make MLflow agree once more, and close the run with the best score if the study has reached ``target``.

        Waits a few seconds; a slow server gets the rest while the report is written, for a minute at most.
        """

        def last() -> None:
            if self._agreeing is not None:
                self._agreeing.join()
            if self._agree() and target is not None:
                self._end(target)

        def limited() -> None:
            with suppress(TimeoutError):  # reported below
                within(_LAST_S, last, lambda: self.stop_level() > 1)

        closing = Thread(target=limited, name="mlflow-end", daemon=True)
        closing.start()
        until = time.monotonic() + _WAIT_S
        while closing.is_alive() and time.monotonic() < until and self.stop_level() < 2:
            closing.join(0.1)
        if closing.is_alive():
            self.say(
                "MLflow is slow: sending continues while the report is written; `harness reconcile` sends what is left"
            )
            if not self.stop_level():  # a person who pressed Ctrl-C wants the end
                atexit.register(_wait_for, closing)

    def _agree(self) -> bool:
        """Send MLflow what folders and database have; return whether that succeeded."""
        children = MlflowTracker(self.tracker.client, self.tracker.experiment_id, self.run_id)
        try:
            for line in reconcile_tracker(self.trials.study, children, self.home):
                self.say(line)
        except StorageError:  # the next call to the database reports it
            return False
        except Exception as error:  # whatever the tracking library raises; the next start repeats this
            return self._away(error)
        return True

    def _end(self, target: int) -> None:
        from harness.findings.headline import headline  # with statsmodels: seconds

        ended, scores, tags = finished_count(self.trials.study), dict[str, float](), dict[str, str]()
        try:
            record = study_to_record(self.trials.study)
            if ended >= target and (best := leading(record)):
                metric = f"best_{record.attrs.final_metric}"
                scores = {metric: best[0].values[0], "trials_complete": float(len(record.complete))}
            if not self.trials.spec.plan:
                tags = headline(record, find_confirmation(record.name, self.home)).tags
            # With a step: MLflow shows the value of the last one, even if the study was extended.
            state = "COMPLETE" if ended >= target else "FAIL"
            self.tracker.end(self.run_id, state, scores=scores, tags=tags, step=ended)
        except Exception as error:
            self._away(error)

    def _away(self, error: Exception) -> bool:
        said = f"{type(error).__name__}: {first_line(error)[:120]}"
        self.say(f"MLflow does not answer ({said}); `harness reconcile` sends the rest")
        return False


def _wait_for(thread: Thread) -> None:
    """Wait for a thread, or for Ctrl-C."""
    with suppress(KeyboardInterrupt):
        thread.join()


def reconcile_home(name: str | None, home: Home) -> Iterator[str]:
    """Heal one study, or all studies and single trainings; yield a line for each thing done.

    Raises StorageError if another version with other keys wrote the study (with all studies, a line says so instead),
    and TrackingError if MLflow does not answer; the database is healed then.
    """
    studies: list[optuna.Study] = []
    storage = open_storage(home) if database_exists(home) else None
    names = sorted(optuna.get_all_study_names(storage)) if storage else []
    for each in [name] if name else names:
        try:
            study = started_study(each, home, storage=storage)
            if not StudyAttrs.parse(study.user_attrs).mlflow_parent:
                raise NotFoundError(f"study {each} was created, and killed before its first trial", "Run it again.")
            studies.append(study)
            spec = stored_spec(study)
        except (NotFoundError, StorageError) as error:
            if name or isinstance(error, StorageLost):
                raise
            if isinstance(error, StorageError):  # another program or version made it; the others are healed
                yield f"{error.problem}; skipped"
            continue
        for line in Trials(study, spec, home).heal():
            yield f"{study.study_name}: {line}"
    yield from adopt_journals(home)
    if not studies and not training_records(home):
        return
    client = client_for(home)
    try:
        for study in studies:
            for line in _agree_on(study, client, home):
                yield f"{study.study_name}: {line}"
            record = study_to_record(study)
            if line := register_best(record, find_confirmation(record.name, home), client, home):
                yield f"{study.study_name}: {line}"
        if name is None:  # single trainings without a living process
            for path in training_records(home):
                yield from _restored(Reflection(path), client)
                Reflection(path).forget_lost(client)
            sent = send_left(
                training_records(home),
                lambda record: MlflowTracker(client, open_experiment(client, home, record.info.experiment)),
            )
            for key, what in sent.items():
                yield f"{key}: {what}"
    except (StorageLost, TrackingError):
        raise
    except Exception as error:
        problem = without_password(first_line(error), str(client.tracking_uri))
        raise TrackingError(f"MLflow refused: {problem}", "Nothing is lost: it is still on disk. Try again.") from None


def _restored(training: Reflection, client: MlflowClient) -> Iterator[str]:
    """Restore the run of a single training, and its experiment, where a person deleted them."""
    run = find_run(client, training.run_id)
    if run is not None and run.info.lifecycle_stage == "deleted":
        experiment = client.get_experiment(run.info.experiment_id)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        training.restore(MlflowTracker(client, experiment.experiment_id))
        yield f"training {training.path.parent.name}: its MLflow run had been deleted; restored"


def _agree_on(study: optuna.Study, client: MlflowClient, home: Home) -> list[str]:
    """Make MLflow agree with a healed study; its own run is restored, or created again, if a person deleted it."""
    attrs, said = StudyAttrs.parse(study.user_attrs), list[str]()
    own = find_run(client, attrs.mlflow_parent)
    if own is not None and own.info.lifecycle_stage == "active":
        experiment = client.get_experiment(own.info.experiment_id)
        if experiment is not None and experiment.lifecycle_stage == "active":
            children = MlflowTracker(client, experiment.experiment_id, own.info.run_id)
            return reconcile_tracker(study, children, home, files=True)
    parent = ParentRun(Trials(study, stored_spec(study), home), home, "cpu", said.append)
    parent.tags |= attrs.environment
    parent.open()
    if own is None:
        said.append(f"its own run is made again; `harness report {study.study_name}` attaches the report to it")
    write_study_attrs(study, StudyAttrs(mlflow_experiment=parent.tracker.experiment_id, mlflow_parent=parent.run_id))
    children = MlflowTracker(client, parent.tracker.experiment_id, parent.run_id)
    said += reconcile_tracker(study, children, home, files=True)
    if all(trial.state.name != "RUNNING" for trial in study.get_trials(deepcopy=False)):
        parent._end(attrs.target)
    return said


def register_best(record: StudyRecord, plan: StudyRecord | None, client: MlflowClient, home: Home) -> str:
    """Register a search's best generator, the confirmed one if any; return what was done or why not, or ""."""
    from harness.findings.confirmation import best_training  # with statsmodels: seconds

    trial = None if record.attrs.spec.get("plan") else best_training(record, plan)
    if trial is None:
        return ""
    of, folder = plan if plan and trial.attrs.arm else record, RunFolder(home.root / trial.attrs.folder)
    if not folder.weights.is_file():  # on another machine
        return ""
    kimg = f"{number(record.attrs.spec['budget']['kimg'])} kimg"
    about = f"Trial {trial.number} of {of.name}: {of.attrs.final_metric} = {number(trial.value)} after {kimg}"
    try:
        return register(client, record.name, of.attrs.mlflow_experiment, folder, dict(trial.attrs.hparams), about)
    except Exception as error:  # whatever MLflow raises; nothing depends on it
        return f"the best generator is not in MLflow's registry ({first_line(error)[:200]})"


def training_records(home: Home) -> list[Path]:
    return sorted(home.within("trainings").glob("*/run-*.json"))


def reconcile_tracker(study: optuna.Study, tracker: MlflowTracker, home: Home, *, files: bool = False) -> list[str]:
    """Make MLflow agree with folders and a healed database: one closed run for each ended trial, in the trial's state.

    What dead processes had not sent is sent first. With ``files`` each run's files are looked at, too, which takes a
    request a run. Returns a line for each thing done; raises whatever MLflow raises.
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
        folder = RunFolder(home.root / TrialAttrs.parse(trial.user_attrs).folder)
        whole = status == STATUS[trial.state.name] and not (files and lacks_files(folder, tracker.client, run_id))
        if whole or not (was := _show(study, trial, run_id, status, tracker, home)):
            continue
        # No fault: a paused trial whose study has ended, and a pruned one as earlier versions showed it.
        if status not in (STATUS["WAITING"], "KILLED"):
            done.append(f"trial {trial.number}: its MLflow run {was}")
    return done


def drop_checkpoints(study: optuna.Study, home: Home) -> None:
    """Remove the checkpoints of trials that were pruned while paused: nothing continues from them."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)):
        attrs = TrialAttrs.parse(trial.user_attrs)
        if attrs.paused_at is not None and attrs.folder:
            for checkpoint in RunFolder(home.root / attrs.folder).checkpoints():
                checkpoint.unlink(missing_ok=True)


def _trial_end(trial: FrozenTrial) -> RunEnd:
    attrs, state = TrialAttrs.parse(trial.user_attrs), trial.state.name
    return RunEnd(state=state, scores=attrs.scores, tags={"trial_state": state, "reason": attrs.reason})


def _show(study: optuna.Study, trial: FrozenTrial, run_id: str, status: str, tracker: MlflowTracker, home: Home) -> str:
    """Show an ended trial whose run is open, deleted, without files, or was never opened; return what was done."""
    done = f"was closed as {trial.state.name}" if run_id else "was missing; created again from the record"
    if status == STATUS[trial.state.name]:
        done = "had lost its files; they are sent again"
    end, folder = _trial_end(trial), RunFolder(home.root / TrialAttrs.parse(trial.user_attrs).folder)
    record = _record(study, trial)
    if folder.path == home.root or not folder.path.is_dir():  # another machine's
        if not run_id:
            run_id = tracker.start(record.info)
            tracker.log(run_id, record.points([]))
        tracker.end(run_id, end.state, scores=end.scores, tags=end.tags)
        return done
    path = next(iter(folder.records()), folder.record(record.kimg))
    reflection = Reflection(path)
    try:
        with reflection.lock.acquire(timeout=0):
            if not path.exists():  # an earlier version trained it
                record.write(path)
            if not run_id and reflection.restore(tracker):
                done = "had been deleted; restored"
            reflection.send_again(tracker, end)
    except Timeout:  # its worker lives, and will send it
        return ""
    return done


def _record(study: optuna.Study, trial: FrozenTrial) -> RunRecord:
    """The record of a trial's run, from the database."""
    attrs, of_study = TrialAttrs.parse(trial.user_attrs), StudyAttrs.parse(study.user_attrs)
    rungs = dict(trial.intermediate_values)
    if attrs.diverged and rungs:
        del rungs[max(rungs)]  # it stands for the divergence
    named = {"seed": attrs.seed, "preset": attrs.preset, "arm": attrs.arm, "protocol_hash": attrs.protocol_hash}
    tags = {name: str(value) for name, value in named.items() if value not in (None, "")}
    params = trial.params  # all there is if it was killed while they were suggested
    if attrs.hparams:
        params = compared_params(of_study.spec, attrs.hparams)
        tags["hparams"] = canonical_json(attrs.hparams)
    info = RunInfo(
        key=trial_key(study.study_name, trial.number),
        name=f"trial {trial.number}",
        experiment=study.study_name,
        params=params,
        tags={**of_study.environment, **tags, "role": "trial", "trial": str(trial.number)},
        dataset=of_study.dataset.get("name", ""),
        dataset_digest=of_study.dataset.get("fingerprint", ""),
        dataset_source=of_study.dataset.get("source", ""),
    )
    started = trial.datetime_start
    opened_ms = int(started.timestamp() * 1000) if started else 0
    kimg = float(of_study.spec.get("budget", {}).get("kimg", 0.0))
    marks = named_marks(of_study.rung_metric, rungs, attrs.watched)
    return RunRecord(info=info, kimg=kimg, opened_ms=opened_ms, marks=marks)
