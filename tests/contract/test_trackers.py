"""What the mirror's tracker promises, and its part in memory; MLflow's figures are read back through its own client."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.errors import HarnessError, UsageError
from harness.home import Home
from harness.store.database import open_storage
from harness.tracking.client import client_for
from harness.tracking.mlflow import MlflowTracker, open_experiment
from harness.training.run_folder import Point, RunInfo
from tests.runs import MemoryTracker

INFO = RunInfo(
    key="study/0",
    name="trial 0",
    experiment="study",
    params={"lr": 2e-4, "bn": "paper"},
    tags={"seed": "7"},
    dataset="mnist",
    dataset_digest="f" * 64,
    dataset_source="mnist",
)


class Memory:
    def __init__(self, home: Home):
        self.tracker = MemoryTracker()

    def read(self, run_id):
        run = self.tracker.runs[run_id]
        curves: dict[str, list] = {}
        for point in run.points:
            curves.setdefault(point.name, []).append((point.step, point.value))
        params = {name: str(value) for name, value in run.info.params.items()}
        return run.status, params, curves, run.scores, run.tags, len(run.images), run.artifacts


class Mlflow:
    def __init__(self, home: Home):
        self.client = client_for(home)
        name = f"study-{home.root.parent.name}"  # a server is shared by all tests
        experiment = open_experiment(self.client, home, name)
        assert open_experiment(self.client, home, name) == experiment
        parent = MlflowTracker(self.client, experiment).start(RunInfo(key="study/sweep", name="s", experiment="study"))
        self.tracker = MlflowTracker(self.client, experiment, parent)
        self.parent = parent

    def read(self, run_id):
        run = self.client.get_run(run_id)
        assert run.data.tags["mlflow.parentRunId"] == self.parent
        assert [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs] == [("mnist", "f" * 12)]
        history = {name: self.client.get_metric_history(run_id, name) for name in run.data.metrics}
        curves = {name: [(m.step, m.value) for m in points] for name, points in history.items()}
        images = [f for f in self.client.list_artifacts(run_id, "images") if f.path.endswith(".png")]
        artifacts = [f.path for f in self.client.list_artifacts(run_id)]
        artifacts += [f.path for f in self.client.list_artifacts(run_id, "model")]
        return run.info.status, run.data.params, curves, run.data.metrics, run.data.tags, len(images), artifacts


@pytest.fixture(params=["memory", "sqlite", "postgresql", "server"])
def made(request, home, monkeypatch):
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").database()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", str(home.artifacts))
        monkeypatch.chdir(home.root)
    elif request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("mlflow_server").url)
    return (Memory if request.param == "memory" else Mlflow)(home)


def test_everything_logged_twice_is_there_once(made, tmp_path: Path):
    tracker = made.tracker
    file = tmp_path / "weights.bin"
    file.write_bytes(b"w")
    picture = tmp_path / "grid.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    for _ in range(2):
        run_id = tracker.start(INFO)
        tracker.log(run_id, [Point("loss", 1.5, 10, 1), Point("loss", 1.25, 20, 2), Point("bad", math.nan, 10, 1)])
        tracker.log(run_id, [Point("bad", math.inf, 20, 2)])
        tracker.image(run_id, "samples", 10, picture)
        tracker.artifact(run_id, file, "model")
        assert tracker.runs_by_key()["study/0"] == (run_id, "RUNNING")
    for _ in range(2):
        tracker.end(run_id, "PRUNED", scores={"fid500": 9.5, "is500": math.nan}, tags={"reason": "slow"})
    status, params, curves, scores, tags, images, artifacts = made.read(run_id)
    assert status == "FINISHED"
    assert params == {"lr": "0.0002", "bn": "paper"}
    assert curves["loss"] == [(10, 1.5), (20, 1.25)]
    assert "bad" not in curves
    assert scores["fid500"] == 9.5
    assert "is500" not in scores
    assert (tags["reason"], tags["seed"]) == ("slow", "7")
    assert images == 1
    assert "model/weights.bin" in artifacts
    assert tracker.runs_by_key()["study/0"] == (run_id, "FINISHED")


def test_a_run_of_an_earlier_version_that_logged_every_hyperparameter_is_continued(made):
    first = made.tracker.start(dataclasses.replace(INFO, params={"lr_g": 2e-4, "lr_d": 2e-4, "bn": "paper"}))
    assert made.tracker.start(INFO) == first
    if isinstance(made, Mlflow):
        assert made.read(first)[1] == {"lr_g": "0.0002", "lr_d": "0.0002", "bn": "paper", "lr": "0.0002"}


def test_of_a_run_that_ended_nothing_is_kept_in_memory(home, tmp_path):
    """A worker lives as long as its sweep, and logs hundreds of points a trial."""
    tracker = Mlflow(home).tracker
    picture = tmp_path / "grid.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    run_id = tracker.start(INFO)
    tracker.log(run_id, [Point("loss", 1.5, 10, 1)])
    tracker.image(run_id, "samples", 10, picture)
    assert (tracker._logged[run_id], tracker._images[run_id]) == ({("loss", 10)}, {("samples", 10)})
    tracker.end(run_id, "COMPLETE", scores={"fid500": 9.5}, tags={})
    assert not tracker._logged
    assert not tracker._images


def test_images_that_an_earlier_process_sent_are_not_sent_again(home, tmp_path, monkeypatch):
    made = Mlflow(home)
    picture = tmp_path / "grid.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    run_id = made.tracker.start(INFO)
    for step in (0, 12000):
        made.tracker.image(run_id, "samples", step, picture)
    made.tracker.image(run_id, "final_samples", 0, picture)
    again = MlflowTracker(made.client, made.tracker.experiment_id, made.parent)
    assert again.start(INFO) == run_id
    sent = []
    monkeypatch.setattr(made.client, "log_image", lambda *_, key, step: sent.append((key, step)))
    for step in (0, 12000, 24000):
        again.image(run_id, "samples", step, picture)
    again.image(run_id, "final_samples", 0, picture)
    assert sent == [("samples", 24000)]


@pytest.mark.parametrize(("state", "status"), [("COMPLETE", "FINISHED"), ("PRUNED", "FINISHED"), ("FAIL", "FAILED")])
def test_states(made, state, status):
    run_id = made.tracker.start(INFO)
    made.tracker.end(run_id, state, scores={}, tags={})
    assert made.read(run_id)[0] == status


def test_large_batches_are_split(made):
    run_id = made.tracker.start(INFO)
    made.tracker.log(run_id, [Point("loss", float(step), step, step) for step in range(2500)])
    assert len(made.read(run_id)[2]["loss"]) == 2500


def test_a_long_description_is_cut_at_a_line(home):
    mlflow = Mlflow(home)
    mlflow.tracker.describe(mlflow.parent, "![a b](plot.png)\n" + "line\n" * 4000, images_in="report")
    note = mlflow.client.get_run(mlflow.parent).data.tags["mlflow.note.content"]
    assert 7000 < len(note) < 8000
    assert note.startswith(f"![a b](get-artifact?path=report/plot.png&run_uuid={mlflow.parent})\n")
    assert note.endswith("line\n\n…")


def test_a_dead_server_is_an_error_with_advice(home, monkeypatch):
    from harness.errors import TrackingError

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match="MLflow does not answer") as caught:
        client_for(home)
    assert "MLFLOW_TRACKING_URI" in caught.value.hint


def test_mlflow_run_that_another_process_continues_has_every_point_once(home):
    """A training that is started again logs its whole curve anew; MLflow would keep a second point at each step."""
    client = client_for(home)
    experiment = open_experiment(client, home, "study")
    for points in ([(100, 1.0)], [(100, 1.0), (200, 2.0)]):
        tracker = MlflowTracker(client, experiment)
        run_id = tracker.start(INFO)
        tracker.log(run_id, [Point("loss_d", value, step, step) for step, value in points])
        tracker.end(run_id, "FAIL", scores={}, tags={})
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss_d")] == [(100, 1.0), (200, 2.0)]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://u:geheim@[::bad", "MLFLOW_TRACKING_URI is not an address"),
        ("http://u:ge/heim@127.0.0.1:9", "%2F for /"),
        ("http://u:ge?heim@127.0.0.1:9", "%3F for ?"),
        ("http://u:ge#heim@127.0.0.1:9", "%23 for #"),
        ("https://u:ge heim@127.0.0.1:9", "%20 for a space"),
        ("http://u:12/heim@127.0.0.1:9", "MLFLOW_TRACKING_URI is not an address"),
        ("mysql+pymysql://u:geheim@127.0.0.1:1/x", "MLflow does not answer: No module named 'pymysql'"),
        ("nothing://u:geheim@x", "unsupported URI"),
    ],
)
def test_an_address_that_cannot_be_used_is_a_sentence_without_its_password(monkeypatch, tmp_path, address, says):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(HarnessError, match=re.escape(says)) as caught:
        client_for(Home(tmp_path / "runs"))
    assert "heim" not in str(caught.value) and "ge" not in re.findall(r"\w+", str(caught.value))


def test_a_password_in_the_databases_address_that_is_not_escaped_is_not_taken_for_a_host(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_STORAGE", "postgresql://u:ge@heim@127.0.0.1:9/x")
    with pytest.raises(UsageError, match="%40 for @") as caught:
        open_storage(Home(tmp_path / "runs"), grace=0.0)
    assert "heim" not in str(caught.value)
