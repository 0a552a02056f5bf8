"""What a person renames or deletes in MLflow: ours is found by its mark, another program's is never taken."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from harness.errors import TrackingError
from harness.home import Home
from harness.spec.files import parse_study
from harness.store.database import write_study_attrs
from harness.store.records import StudyAttrs
from harness.store.studies import open_study, started_study
from harness.store.trials import Trials
from harness.sweep.reconcile import ParentRun, reconcile_home
from harness.tracking.client import client_for
from harness.tracking.mirror import Reflection
from harness.tracking.mlflow import MlflowTracker, open_experiment
from harness.tracking.ui import ui_links
from harness.training.run_folder import RunInfo
from tests.conftest import TINY_STUDY
from tests.contract.test_mirror import END, write

SPEC = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")
INFO = RunInfo(key="tiny/0", name="trial 0", experiment="tiny")


@pytest.fixture
def client(home, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return client_for(home)


@pytest.mark.parametrize("then", ["nothing", "deleted", "name taken"])
def test_a_renamed_experiment_is_found(home, client, then):
    experiment, said = open_experiment(client, home, "tiny"), []
    client.rename_experiment(experiment, "tiny at 16 px")
    if then == "deleted":
        client.delete_experiment(experiment)
    if then == "name taken":
        client.create_experiment("tiny")
    assert open_experiment(client, home, "tiny", say=said.append) == experiment
    assert said == (["MLflow's experiment tiny at 16 px had been deleted; restored"] if then == "deleted" else [])
    assert client.get_experiment(experiment).lifecycle_stage == "active"


def test_one_of_an_earlier_version_has_no_mark_and_is_found_by_its_run(home, client):
    experiment = client.create_experiment("tiny")
    run = MlflowTracker(client, experiment).start(INFO)
    client.rename_experiment(experiment, "renamed")
    assert open_experiment(client, home, "tiny", of_run=run) == experiment
    assert open_experiment(client, home, "tiny") == experiment, "it has its mark now"


@pytest.mark.parametrize("deleted", [False, True])
def test_another_programs_experiment_of_that_name_is_refused(home, client, deleted):
    experiment = client.create_experiment("tiny")
    client.create_run(experiment)
    if deleted:
        client.delete_experiment(experiment)
    with pytest.raises(TrackingError, match="experiment named tiny that another program made"):
        open_experiment(client, home, "tiny")
    assert client.get_experiment(experiment).lifecycle_stage == ("deleted" if deleted else "active")
    assert len(client.search_runs([experiment], run_view_type=3)) == 1


def test_an_experiment_that_was_given_another_studys_name_stays_its_own(home, client):
    experiment = open_experiment(client, home, "tiny")
    client.rename_experiment(experiment, "other")
    with pytest.raises(TrackingError, match="MLflow's experiment named other is that of study tiny"):
        open_experiment(client, home, "other")
    assert open_experiment(client, home, "tiny") == experiment
    client.rename_experiment(experiment, "tiny")
    assert open_experiment(client, home, "other") != experiment


def test_an_empty_one_may_be_prepared_for_us(home, client):
    experiment = client.create_experiment("tiny", tags={"team": "vision"})
    assert open_experiment(client, home, "tiny") == experiment


def test_a_deleted_run_is_opened_again_rather_than_doubled(home, client):
    tracker = MlflowTracker(client, open_experiment(client, home, "tiny"))
    run = tracker.start(INFO)
    client.delete_run(run)
    assert tracker.start(INFO) == run
    assert client.get_run(run).info.lifecycle_stage == "active"


@pytest.fixture
def study(home, client):
    trials = Trials(open_study(SPEC, home), SPEC, home)
    parent = ParentRun(trials, home, "cpu", pytest.fail).open()
    own = StudyAttrs(mlflow_experiment=parent.tracker.experiment_id, mlflow_parent=parent.run_id, target=4,
                     final_metric="fid20", rung_metric="fid_mnv2_20")  # fmt: skip
    write_study_attrs(trials.study, own)
    return trials, parent


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_the_studys_own_run_is_restored_and_said(home, client, study, what):
    trials, parent = study
    if what == "run":
        client.delete_run(parent.run_id)
    else:
        client.delete_experiment(parent.tracker.experiment_id)
    said: list[str] = []
    again = ParentRun(trials, home, "cpu", said.append).open()
    assert (again.run_id, again.tracker.experiment_id) == (parent.run_id, parent.tracker.experiment_id)
    assert said and all("had been deleted" in line and "restored" in line for line in said)


def without_database(home: Home, folder: Path) -> Home:
    """The home, with MLflow's database deleted, in another place: this process has that of the first open."""
    shutil.copytree(home.root, folder, ignore=shutil.ignore_patterns("mlflow.db*"), symlinks=True)
    return Home(folder)


@pytest.mark.parametrize("known", [False, True])
def test_reconcile_shows_a_study_again_whose_database_is_lost(home, tmp_path, study, known):
    parent, home = study[1], without_database(home, tmp_path / "other")
    if known:
        client = client_for(home)
        for name in ("a", "b", "c"):  # whose ids are those that ours had
            client.create_run(client.create_experiment(name))
    assert "its own run is made again" in next(reconcile_home("tiny", home))
    assert list(reconcile_home("tiny", home)) == []
    attrs = StudyAttrs.parse(started_study("tiny", home).user_attrs)
    again = client_for(home)
    assert attrs.mlflow_parent != parent.run_id
    assert again.get_experiment(attrs.mlflow_experiment).name == "tiny"
    assert again.get_run(attrs.mlflow_parent).info.status == "FAILED", "its target is not reached"


def test_a_training_that_is_gone_is_sent_again(home, client, tmp_path):
    path = write(home.training_dir("name"))
    experiment = open_experiment(client, home, "study")
    Reflection(path).send(MlflowTracker(client, experiment))
    home = without_database(home, tmp_path / "other")
    assert [line for line in reconcile_home(None, home) if "study/0" in line]
    again = client_for(home)
    (run,) = again.search_runs([again.get_experiment_by_name("study").experiment_id])
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 0.3)
    assert list(reconcile_home(None, home)) == []


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_trainings_run_that_a_person_deleted_is_restored_and_said(home, client, what):
    reflection = Reflection(write(home.training_dir("name")))
    experiment = open_experiment(client, home, "study")
    reflection.send(MlflowTracker(client, experiment))
    if what == "run":
        client.delete_run(reflection.run_id)
    else:
        client.delete_experiment(experiment)
    assert list(reconcile_home(None, home)) == ["training name: its MLflow run had been deleted; restored"]
    (run,) = client.search_runs([experiment])
    assert (run.info.run_id, run.info.status) == (reflection.run_id, "FINISHED")
    assert client.get_experiment(experiment).lifecycle_stage == "active"


def test_a_database_that_is_deleted_under_this_process_is_made_again(home, client):
    """A notebook lives on: MLflow keeps connections to the file that is gone."""
    path = write(home.training_dir("name"))
    Reflection(path).send(MlflowTracker(client, open_experiment(client, home, "study")))
    (home.root / "mlflow.db").unlink()
    assert [line for line in reconcile_home(None, home) if "study/0" in line]
    with closing(sqlite3.connect(home.root / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (1,)


@pytest.mark.parametrize("what", ["artifacts", "artifacts/study/*/artifacts/images"])
def test_pictures_and_files_that_are_deleted_alone_are_sent_again(home, client, what):
    path = write(home.training_dir("name"))
    reflection = Reflection(path)
    reflection.send(MlflowTracker(client, open_experiment(client, home, "study")))
    there = {file.path for file in client.list_artifacts(reflection.run_id)}
    for folder in home.root.glob(what):
        shutil.rmtree(folder)
    assert [line for line in reconcile_home(None, home) if "study/0" in line]
    assert {file.path for file in client.list_artifacts(reflection.run_id)} == there
    assert len(client.search_runs([client.get_run(reflection.run_id).info.experiment_id])) == 1
    assert list(reconcile_home(None, home)) == []


def test_a_run_whose_key_a_person_took_away_is_found_by_its_id(home, client):
    tracker = MlflowTracker(client, open_experiment(client, home, "study"))
    reflection = Reflection(write(home.training_dir("name")))
    reflection.send(tracker)
    client.delete_tag(reflection.run_id, "harness.key")
    reflection.send_again(tracker, END)
    (run,) = client.search_runs([tracker.experiment_id])
    assert run.info.run_id == reflection.run_id and run.data.tags["harness.key"] == "study/0"


def test_the_links_of_a_renamed_experiment_are_its_own(home, client):
    ours = open_experiment(client, home, "tiny")
    client.rename_experiment(ours, "tiny at 16 px")
    client.create_run(client.create_experiment("tiny"))
    ((_, address),) = ui_links(home, 5000, {"tiny": "fid20"})
    assert f"/experiments/{ours}/runs" in address


def test_a_training_that_an_older_copy_of_the_database_has_half_is_sent_to_its_end(home, client):
    path = write(home.training_dir("name"))
    reflection = Reflection(path)
    reflection.send(MlflowTracker(client, open_experiment(client, home, "study")))
    client.update_run(reflection.run_id, status="RUNNING")
    assert [line for line in reconcile_home(None, home) if "study/0" in line]
    assert client.get_run(reflection.run_id).info.status == "FINISHED"
    assert list(reconcile_home(None, home)) == []
