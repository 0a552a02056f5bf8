"""What a run's folder records arrives in MLflow once, whatever becomes of the server or the process in between."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from filelock import FileLock, Timeout
from PIL import Image

import harness.tracking.mirror as mirror_module
from harness.errors import Fenced
from harness.home import Home
from harness.sweep.journals import adopt_journals
from harness.tracking.client import client_for, new_client
from harness.tracking.mirror import Mirror, Reflection, send_left
from harness.tracking.mlflow import MlflowTracker, open_experiment
from harness.training.run_folder import Point, RunEnd, RunFolder, RunInfo, RunRecord
from tests.runs import MemoryTracker
from tests.servers import Gateway, MlflowServer

INFO = RunInfo(key="study/0", name="trial 0", experiment="study", params={"lr": 0.1}, tags={"seed": "7"})
END = RunEnd(state="COMPLETE", scores={"fid20": 3.0}, tags={"trial_state": "COMPLETE"}, kimg=0.3)
STEPS = (100, 200, 300)
SENT = {"study/0": "the rest of its run was sent to MLflow"}


def begin(folder: Path, steps=STEPS, info: RunInfo = INFO) -> Path:
    """A run's folder while it trains; returns the path of its record."""
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    run.hparams.write_text("{}")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(run.grid(0.1))
    rows = [{"kimg": step / 1000, "loss": step / 1000, "nan": float("nan"), "images_per_s": 50.0} for step in steps]
    run.curve.write_text(json.dumps(rows))
    path = run.record(0.3)
    RunRecord(info=info, kimg=0.3, opened_ms=1000, marks={100: {"rung": 7.0}}).write(path)
    return path


def finish(path: Path, steps=STEPS) -> None:
    """The run ends COMPLETE, with published weights."""
    begin(path.parent, steps, RunRecord.read(path).info)
    RunFolder(path.parent).weights.write_bytes(b"w")
    dataclasses.replace(RunRecord.read(path), end=END).write(path)


def write(folder: Path) -> Path:
    """A whole run."""
    path = begin(folder)
    finish(path)
    return path


def is_owned(path: Path) -> bool:
    """Whether a process that lives mirrors it."""
    try:
        with Reflection(path).lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        Event().wait(0.01)


def assert_whole(tracker: MemoryTracker) -> None:
    run = tracker.runs["study/0"]
    assert [(step, value) for name, value, step in run.values if name == "loss"] == [(s, s / 1000) for s in STEPS]
    assert [(step, value) for name, value, step in run.values if name == "rung"] == [(100, 7.0)]
    assert (run.status, run.images) == ("FINISHED", [("samples", 100)])
    assert run.artifacts == ["hparams.json", "curve.json", "model/generator.safetensors", "model/hparams.json"]
    assert run.scores == END.scores


def test_a_run_is_shown_whole_and_not_again(tmp_path):
    path, tracker = write(tmp_path / "0"), MemoryTracker()
    assert send_left([path], lambda record: tracker) == SENT
    assert_whole(tracker)
    assert send_left([path], lambda record: pytest.fail("sent")) == {}


def test_a_run_that_is_continued_is_open_again_and_keeps_what_it_has(tmp_path):
    path, tracker = write(tmp_path / "0"), MemoryTracker()
    interrupted = dataclasses.replace(RunRecord.read(path), end=RunEnd(state="FAIL", tags={"reason": "interrupted"}))
    interrupted.write(path)
    send_left([path], lambda record: tracker)
    assert tracker.runs["study/0"].status == "FAILED"
    dataclasses.replace(interrupted, opened_ms=2000, end=None).write(path)
    send_left([path], lambda record: tracker)
    assert tracker.runs["study/0"].status == "RUNNING"
    finish(path)
    dataclasses.replace(RunRecord.read(path), opened_ms=2000).write(path)
    send_left([path], lambda record: tracker)
    assert_whole(tracker)


def test_the_same_record_has_the_same_points_at_the_same_times(tmp_path):
    record = RunRecord.read(write(tmp_path / "0"))
    points = list(record.points(RunFolder(tmp_path / "0").read_curve()))
    assert [point.at_ms for point in points if point.name == "loss"] == [3000, 5000, 7000], "50 images a second"
    assert [point.at_ms for point in points if point.name == "rung"] == [3000]


class Failing(MemoryTracker):
    """Loses its connection at the n-th call, before or after having done what it was asked to."""

    def __init__(self, at: int, after: bool) -> None:
        super().__init__()
        self.left, self.after = at, after

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in ("start", "log", "image", "artifact", "end"):
            return found

        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0 and not self.after:
                raise ConnectionError("gone")
            result = found(*args, **kwargs)
            if self.left == 0:
                raise ConnectionError("gone")
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_connection_that_is_lost_anywhere_loses_and_doubles_nothing(tmp_path, at, after):
    path, tracker = write(tmp_path / "0"), Failing(at, after)
    if at == 1:  # with no run yet there is nothing to ask about: MLflow counts as away
        with pytest.raises(ConnectionError):
            send_left([path], lambda record: tracker)
    else:
        assert "MLflow refused it (ConnectionError: gone)" in send_left([path], lambda record: tracker)["study/0"]
    assert send_left([path], lambda record: tracker) == SENT
    assert_whole(tracker)


class Choosy(MemoryTracker):
    """Takes nothing of one run."""

    def log(self, run_id, points):
        if run_id == "study/0":
            raise ValueError("not this one")
        super().log(run_id, points)


def test_a_run_that_is_refused_for_good_holds_up_no_other(tmp_path):
    tracker, said = Choosy(), []
    mirror = Mirror(lambda: tracker, said.append)
    records = [begin(tmp_path / "0"), begin(tmp_path / "1", info=dataclasses.replace(INFO, key="study/1"))]
    for path in records:
        finish(path)
        mirror.follow(path)
    mirror.close(60)
    assert (tracker.runs["study/0"].status, tracker.runs["study/1"].status) == ("RUNNING", "FINISHED")
    assert said[0] == "MLflow refused study/0 (ValueError: not this one); it is kept on disk, training continues"
    assert send_left(records, lambda record: tracker) == {
        "study/0": "MLflow refused it (ValueError: not this one); it is kept, and sent next time"
    }


@pytest.mark.parametrize("damage", [b"", b"{", b'{"run_id": 3}'])
def test_a_damaged_cursor_costs_time_and_doubles_nothing(tmp_path, damage):
    path, tracker = begin(tmp_path / "0"), MemoryTracker()
    assert not Reflection(path).send(tracker)
    Reflection(path).cursor_path.write_bytes(damage)
    finish(path)
    assert send_left([path], lambda record: tracker) == SENT
    assert_whole(tracker)


def test_a_living_trainings_run_is_left_to_it(tmp_path):
    path, tracker = begin(tmp_path / "0"), MemoryTracker()
    mirror = Mirror(lambda: tracker, pytest.fail)
    mirror.follow(path)
    wait_until(lambda: "study/0" in tracker.runs)
    assert is_owned(path)
    assert send_left([path], lambda record: pytest.fail("sent")) == {}
    finish(path)
    mirror.close(60)
    assert not is_owned(path)
    assert_whole(tracker)


def test_a_killed_trainings_run_is_closed_as_the_database_has_it(tmp_path):
    path, tracker = begin(tmp_path / "0"), MemoryTracker()
    end = RunEnd(state="FAIL", tags={"reason": "its worker was killed"})
    assert send_left([path], lambda record: tracker, lambda record: end) == {
        "study/0": "its MLflow run was closed as FAIL"
    }
    run = tracker.runs["study/0"]
    assert (run.status, run.tags["reason"]) == ("FAILED", "its worker was killed")
    assert [step for name, _, step in run.values if name == "loss"] == list(STEPS)


def test_what_is_fenced_sends_nothing(tmp_path):
    def fence():
        asked.set()
        raise Fenced("declared dead")

    asked, tracker, path = Event(), MemoryTracker(), begin(tmp_path / "0")
    mirror = Mirror(lambda: tracker, pytest.fail)
    mirror.follow(path, fence)
    assert asked.wait(30)
    mirror.close(30)
    assert tracker.runs == {}
    assert Reflection(path).unsent(), "left to whoever reconciles"


def test_a_run_with_nothing_left_to_send_is_asked_about_seldom_and_let_go_when_it_is_declared_dead(
    tmp_path, monkeypatch
):
    def fence():
        asked.append(time.monotonic())
        if dead:
            raise Fenced("declared dead")

    asked: list[float] = []
    dead: list[bool] = []
    monkeypatch.setattr(mirror_module, "_EVERY_S", 0.02)
    monkeypatch.setattr(mirror_module, "_ASK_EVERY_S", 0.5)
    tracker, path = MemoryTracker(), begin(tmp_path / "0", steps=())
    mirror = Mirror(lambda: tracker, pytest.fail)
    mirror.follow(path, fence)
    wait_until(lambda: len(asked) >= 3)
    assert asked[2] - asked[1] >= 0.5
    begin(tmp_path / "0")
    wait_until(lambda: ("loss", 0.3, 300) in tracker.runs["study/0"].values)
    assert is_owned(path)
    dead.append(True)
    wait_until(lambda: not is_owned(path))
    mirror.close(30)


@pytest.mark.parametrize("for_good", [False, True])
def test_a_run_that_a_person_deleted_while_it_was_written_comes_back(home, tmp_path, for_good):
    client = client_for(home)
    tracker = MlflowTracker(client, open_experiment(client, home, "study"))
    path = begin(tmp_path / "0", steps=(100,))
    reflection = Reflection(path)
    assert not reflection.send(tracker)
    client.delete_run(reflection.run_id)
    if for_good:
        client._tracking_client.store._hard_delete_run(reflection.run_id)
    finish(path, steps=(100, 200))
    if for_good:
        assert "it is kept, and sent next time" in send_left([path], lambda record: tracker)["study/0"]
    assert send_left([path], lambda record: tracker) == SENT
    (run,) = client.search_runs([tracker.experiment_id])
    assert (run.info.status, run.info.run_id == reflection.run_id) == ("FINISHED", not for_good)
    assert [p.step for p in client.get_metric_history(run.info.run_id, "loss")] == [100, 200]


@pytest.mark.parametrize("for_good", [False, True])
def test_a_run_that_a_person_deleted_after_its_end_comes_back_whole(home, tmp_path, for_good):
    client = client_for(home)
    tracker = MlflowTracker(client, open_experiment(client, home, "study"))
    path = write(tmp_path / "0")
    send_left([path], lambda record: tracker)
    deleted = Reflection(path).run_id
    client.delete_run(deleted)
    if for_good:
        client._tracking_client.store._hard_delete_run(deleted)
    reflection = Reflection(path)
    reflection.restore(tracker)
    reflection.send_again(tracker, END)
    (run,) = client.search_runs([tracker.experiment_id])
    assert (run.info.status, run.info.run_id == deleted) == ("FINISHED", not for_good)
    assert [p.step for p in client.get_metric_history(run.info.run_id, "loss")] == list(STEPS)


def test_of_two_runs_of_one_key_the_one_with_data_stays(home, tmp_path):
    client = client_for(home)
    experiment = open_experiment(client, home, "study")
    sweep = RunInfo(key="study/sweep", name="study", experiment="study", params={}, tags={})
    parent = MlflowTracker(client, experiment).start(sweep)
    tracker = MlflowTracker(client, experiment, parent)
    late = tracker.start(INFO)  # its answer never came
    tracker._find = lambda key: None  # the second request was made before the first one's run could be seen
    used = tracker.start(INFO)
    tracker.log(used, [Point("loss", 0.1, 100, 1)])
    assert late != used
    assert tracker.drop_doubles() == [INFO.key]
    assert {run_id for run_id, _ in tracker.runs_by_key().values()} == {used}


def journal(home: Home, info: dict, lines: list[dict]) -> Path:
    """As version 0 wrote it, cut off in its last line."""
    (home.root / "spool").mkdir(parents=True, exist_ok=True)
    path = home.root / "spool" / f"{len(lines)}.jsonl"
    start = {"op": "start", "info": info, "at": 1000}
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in (start, *lines)) + b'{"op":"lo')
    return path


def of_version_0(key: str) -> dict:
    return {**{name: value for name, value in dataclasses.asdict(INFO).items() if name != "experiment"}, "key": key}


def test_journals_of_an_earlier_version_are_replaced_by_records_once(tmp_path):
    home = Home(tmp_path / "runs")
    folder = home.training_dir("digits-1a2b")
    begin(folder).unlink()
    journal(home, of_version_0("study/0"), [])
    journal(home, of_version_0("study/training/digits-1a2b/0.3"), [
        {"op": "log", "points": [["loss", 0.1, 100], ["rung", 7.0, 100]], "at": 1001},
        {"op": "end", "state": "COMPLETE", "scores": END.scores, "tags": END.tags},
    ])  # fmt: skip
    RunFolder(folder).weights.write_bytes(b"w")
    said = "2 journals of an earlier version removed: MLflow gets it from the runs' folders"
    assert adopt_journals(home) == [said]
    assert not (home.root / "spool").exists()
    assert adopt_journals(home) == []
    tracker = MemoryTracker()
    (path,) = RunFolder(folder).records()
    send_left([path], lambda record: tracker)
    tracker.runs["study/0"] = tracker.runs.pop("study/training/digits-1a2b/0.3")
    assert_whole(tracker)


def test_a_journal_whose_writer_lives_is_left_to_it(tmp_path):
    home = Home(tmp_path / "runs")
    path = journal(home, of_version_0("study/0"), [])
    with FileLock(path.with_suffix(".owner")):
        assert adopt_journals(home) == []
    assert path.exists()
    assert adopt_journals(home)


@pytest.fixture
def gateway(mlflow_server):
    made = Gateway(mlflow_server.port)
    yield made
    made.close()


def connected(home, monkeypatch, url):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = client_for(home)
    return client, open_experiment(client, home, home.root.parent.name)


def assert_in_mlflow(client, experiment, steps=STEPS) -> None:
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, step / 1000) for step in steps]
    assert [point.value for point in client.get_metric_history(run.info.run_id, "fid20")] == [3.0]
    assert sum(item.path.endswith(".png") for item in client.list_artifacts(run.info.run_id, "images")) == 1


def test_a_server_that_is_away_for_a_whole_trial_gets_everything_once_when_it_is_back(home, monkeypatch, tmp_path):
    server = MlflowServer(tmp_path / "mlflow").start()
    client, experiment = connected(home, monkeypatch, server.url)
    server.kill()
    away, back = Event(), Event()

    def say(text: str) -> None:
        (away if "MLflow failed" in text else back).set()

    mirror = Mirror(lambda: MlflowTracker(new_client(home), experiment), say)
    mirror.follow(write(tmp_path / "0"))
    assert away.wait(60)
    server.start()
    try:
        assert back.wait(60)
        mirror.close(60)
        assert_in_mlflow(client, experiment)
        assert Reflection(tmp_path / "0" / "run-0.3.json").unsent() is None
    finally:
        server.kill()


@pytest.mark.parametrize("mode", ["500", "lost"])
def test_a_server_that_answers_500_or_whose_answers_are_lost_doubles_nothing(
    home, gateway, monkeypatch, tmp_path, mode
):
    client, experiment = connected(home, monkeypatch, gateway.url)
    gateway.mode = mode
    away = Event()
    mirror = Mirror(lambda: MlflowTracker(new_client(home), experiment), lambda text: away.set())
    path = write(tmp_path / "0")
    mirror.follow(path)
    assert away.wait(60)
    gateway.mode = "pass"
    mirror.close(60)
    parentless = MlflowTracker(client, experiment)
    send_left([path], lambda record: parentless)
    assert_in_mlflow(client, experiment)


def test_a_slow_server_holds_up_nobody(home, gateway, monkeypatch, tmp_path):
    """The whole run is written while not one answer has come."""
    client, experiment = connected(home, monkeypatch, gateway.url)
    gateway.mode = "slow"
    mirror = Mirror(lambda: MlflowTracker(new_client(home), experiment), lambda text: None)
    path = begin(tmp_path / "0")
    mirror.follow(path)
    assert gateway.seen.wait(60)
    finish(path)
    assert client is not None
    gateway.mode = "pass"
    gateway.release.set()
    mirror.close(60)
    assert_in_mlflow(client, experiment)
