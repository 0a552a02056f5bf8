"""What is tracked arrives once, in order, whatever becomes of the server, the process or the disk in between."""

from __future__ import annotations

import dataclasses
import json
import time
from threading import Event

import numpy as np
import pytest
from PIL import Image

import harness.tracking.courier as courier_module
from harness.errors import Fenced
from harness.tracking.courier import Courier, Left, send_left
from harness.tracking.mlflow import MlflowTracker, client_for, new_client, open_experiment
from harness.tracking.spool import Delivery, Spool, is_owned, journal_path, journals
from harness.tracking.tracker import MemoryTracker, Point, RunInfo
from tests.servers import Gateway, MlflowServer

INFO = RunInfo(key="study/0", name="trial 0", params={"lr": 0.1}, tags={"seed": "7"})
END = {"scores": {"fid20": 3.0}, "tags": {"trial_state": "COMPLETE"}}


def write(spool: Spool, tmp_path, steps=range(100, 400, 100)) -> str:
    """A whole run, as a trial writes it."""
    picture = tmp_path / "grid.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    run_id = spool.start(INFO)
    for step in steps:
        spool.log(run_id, [Point("loss", step / 1000, step), Point("nan", float("nan"), step)])
    spool.image(run_id, "samples", 100, picture)
    spool.artifact(run_id, picture, "model")
    spool.end(run_id, "COMPLETE", **END)
    return run_id


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        Event().wait(0.01)


def assert_whole(tracker: MemoryTracker) -> None:
    run = tracker.runs["study/0"]
    assert run.points == [Point("loss", step / 1000, step) for step in range(100, 400, 100)]
    assert (run.status, run.images, run.artifacts) == ("FINISHED", [("samples", 100)], ["model/grid.png"])
    assert run.scores == END["scores"]


def test_a_journal_is_sent_in_order_and_removed(tmp_path):
    spool = Spool(tmp_path / "spool", pytest.fail)
    write(spool, tmp_path)
    tracker = MemoryTracker()
    assert send_left(tmp_path / "spool", lambda key: tracker) == Left(sent=["study/0"])
    assert_whole(tracker)
    assert list((tmp_path / "spool").iterdir()) == []


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
@pytest.mark.parametrize("at", range(1, 8))
def test_a_connection_that_is_lost_anywhere_loses_and_doubles_nothing(tmp_path, at, after):
    write(Spool(tmp_path / "spool", pytest.fail), tmp_path)
    tracker = Failing(at, after)
    if at == 1:  # with no run yet there is nothing to ask about: the tracker counts as away
        with pytest.raises(ConnectionError):
            send_left(tmp_path / "spool", lambda key: tracker)
    else:
        assert send_left(tmp_path / "spool", lambda key: tracker).refused == {"study/0": "ConnectionError: gone"}
    assert send_left(tmp_path / "spool", lambda key: tracker).sent == ["study/0"]
    assert_whole(tracker)


class Choosy(MemoryTracker):
    """Takes nothing of one run."""

    def log(self, run_id, points, *, at_ms=None):
        if run_id == "study/0":
            raise ValueError("not this one")
        super().log(run_id, points, at_ms=at_ms)


def test_a_run_that_is_refused_for_good_holds_up_no_other(tmp_path):
    tracker, said = Choosy(), []
    courier = Courier(tmp_path / "spool", lambda: tracker, said.append)
    other = dataclasses.replace(INFO, key="study/1")
    for info in (INFO, other):
        run_id = courier.start(info)
        courier.log(run_id, [Point("loss", 1.0, 1)])
        courier.end(run_id, "COMPLETE", **END)
    courier.close(60)
    assert (tracker.runs["study/0"].status, tracker.runs["study/1"].status) == ("RUNNING", "FINISHED")
    assert said[0] == "MLflow does not take study/0 (ValueError: not this one); kept on disk, training goes on"
    assert send_left(tmp_path / "spool", lambda key: tracker).refused == {"study/0": "ValueError: not this one"}


def test_half_a_last_line_is_cut_off_and_the_rest_is_sent(tmp_path):
    spool = Spool(tmp_path / "spool", pytest.fail)
    run_id = spool.start(INFO)
    spool.log(run_id, [Point("loss", 1.0, 100)])
    path = journal_path(tmp_path / "spool", run_id)
    with path.open("ab") as file:
        file.write(b'{"op":"log","points":[["loss",2.0')
    spool._owned.pop(run_id).release()
    again = Spool(tmp_path / "spool", pytest.fail)
    again.start(INFO)
    again.log(run_id, [Point("loss", 3.0, 300)])
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
    tracker = MemoryTracker()
    Delivery(path).send(tracker)
    assert [(point.step, point.value) for point in tracker.runs[run_id].points] == [(100, 1.0), (300, 3.0)]


def test_a_living_writers_journal_is_left_to_it(tmp_path):
    spool = Spool(tmp_path / "spool", pytest.fail)
    run_id = spool.start(INFO)
    assert is_owned(journal_path(tmp_path / "spool", run_id))
    assert send_left(tmp_path / "spool", lambda key: pytest.fail("sent")) == Left()


def test_the_spool_is_bounded_and_keeps_what_matters_most(tmp_path):
    said: list[str] = []
    spool = Spool(tmp_path / "spool", said.append, limit_bytes=4000)
    write(spool, tmp_path, steps=range(100, 100_000, 100))
    assert sum(path.stat().st_size for path in journals(tmp_path / "spool")) < 6000
    assert said == [f"{tmp_path / 'spool'} holds 0 MB; curves are kept in the trials only"]
    tracker = MemoryTracker()
    send_left(tmp_path / "spool", lambda key: tracker)
    assert (tracker.runs["study/0"].status, tracker.runs["study/0"].scores) == ("FINISHED", END["scores"])


def test_what_is_fenced_sends_nothing(tmp_path):
    def fence():
        asked.set()
        raise Fenced("declared dead")

    asked = Event()
    tracker = MemoryTracker()
    courier = Courier(tmp_path / "spool", lambda: tracker, pytest.fail)
    courier.guard("study/0", fence)
    courier.start(INFO)
    assert asked.wait(30)
    courier.close(30)
    assert tracker.runs == {}
    assert [path.name for path in journals(tmp_path / "spool")], "left to whoever reconciles"


def test_a_run_with_nothing_left_to_send_is_asked_about_seldom_and_let_go_when_it_is_declared_dead(
    tmp_path, monkeypatch
):
    def fence():
        asked.append(time.monotonic())
        if dead:
            raise Fenced("declared dead")

    asked: list[float] = []
    dead: list[bool] = []
    monkeypatch.setattr(courier_module, "_EVERY_S", 0.02)
    monkeypatch.setattr(courier_module, "_ASK_EVERY_S", 0.5)
    tracker = MemoryTracker()
    courier = Courier(tmp_path / "spool", lambda: tracker, pytest.fail)
    courier.guard("study/0", fence)
    courier.start(INFO)
    path = journal_path(tmp_path / "spool", "study/0")
    wait_until(lambda: len(asked) >= 3)
    assert asked[2] - asked[1] >= 0.5
    courier.log("study/0", [Point("loss", 1.0, 1)])
    wait_until(lambda: tracker.runs["study/0"].points)
    assert is_owned(path)
    dead.append(True)
    wait_until(lambda: not is_owned(path))
    courier.close(30)


@pytest.mark.parametrize("for_good", [False, True])
def test_a_run_that_a_person_deleted_while_it_was_written_comes_back(home, tmp_path, for_good):
    client = client_for(home)
    tracker = MlflowTracker(client, open_experiment(client, home, "study"))
    spool = Spool(home.spool, pytest.fail)
    run_id = spool.start(INFO)
    spool.log(run_id, [Point("loss", 0.1, 100)])
    delivery = Delivery(journal_path(home.spool, run_id))
    assert not delivery.send(tracker)
    client.delete_run(delivery.run_id)
    if for_good:
        client._tracking_client.store._hard_delete_run(delivery.run_id)
    spool.log(run_id, [Point("loss", 0.2, 200)])
    spool.end(run_id, "COMPLETE", **END)
    if for_good:
        assert send_left(home.spool, lambda key: tracker).refused
    assert send_left(home.spool, lambda key: tracker).sent == ["study/0"]
    (run,) = client.search_runs([tracker.experiment_id])
    assert (run.info.status, run.info.run_id == delivery.run_id) == ("FINISHED", not for_good)
    assert [p.step for p in client.get_metric_history(run.info.run_id, "loss")] == [100, 200]


def test_of_two_runs_of_one_key_the_one_with_data_stays(home, tmp_path):
    client = client_for(home)
    experiment = open_experiment(client, home, "study")
    parent = MlflowTracker(client, experiment).start(RunInfo(key="study/sweep", name="study", params={}, tags={}))
    tracker = MlflowTracker(client, experiment, parent)
    late = tracker.start(INFO)  # its answer never came
    tracker._find = lambda key: None  # the second request was made before the first one's run could be seen
    used = tracker.start(INFO)
    tracker.log(used, [Point("loss", 0.1, 100)])
    assert late != used
    assert tracker.drop_doubles() == [INFO.key]
    assert {run_id for run_id, _ in tracker.runs_by_key().values()} == {used}


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


def assert_in_mlflow(client, experiment, steps=range(100, 400, 100)) -> None:
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
        (away if "does not take it" in text else back).set()

    courier = Courier(home.spool, lambda: MlflowTracker(new_client(home), experiment), say)
    write(courier, tmp_path)
    assert away.wait(60)
    server.start()
    try:
        assert back.wait(60)
        courier.close(60)
        assert_in_mlflow(client, experiment)
        assert list(home.spool.glob("*.jsonl")) == []
    finally:
        server.kill()


@pytest.mark.parametrize("mode", ["500", "lost"])
def test_a_server_that_answers_500_or_whose_answers_are_lost_doubles_nothing(
    home, gateway, monkeypatch, tmp_path, mode
):
    client, experiment = connected(home, monkeypatch, gateway.url)
    gateway.mode = mode
    away = Event()
    courier = Courier(home.spool, lambda: MlflowTracker(new_client(home), experiment), lambda text: away.set())
    write(courier, tmp_path)
    assert away.wait(60)
    gateway.mode = "pass"
    courier.close(60)
    parentless = MlflowTracker(client, experiment)
    send_left(home.spool, lambda key: parentless)
    assert_in_mlflow(client, experiment)


def test_a_slow_server_holds_up_nobody(home, gateway, monkeypatch, tmp_path):
    """The whole run is written while not one answer has come."""
    client, experiment = connected(home, monkeypatch, gateway.url)
    gateway.mode = "slow"
    courier = Courier(home.spool, lambda: MlflowTracker(new_client(home), experiment), lambda text: None)
    courier.start(INFO)
    assert gateway.seen.wait(60)
    write(courier, tmp_path)
    assert client is not None
    gateway.mode = "pass"
    gateway.release.set()
    courier.close(60)
    assert_in_mlflow(client, experiment)
