"""What the engines promise of stopping, and of a database that is lost."""

from __future__ import annotations

import multiprocessing as mp
import signal
from multiprocessing.connection import Connection

import pytest

from harness.errors import StorageLost, SweepError
from harness.sweep.engines import local
from harness.sweep.engines.ray import forwarded_environment
from harness.sweep.messages import Ready, Watcher
from harness.sweep.run import ending_with


def slow_to_hear(pipe: Connection) -> None:
    """A worker's process: deaf to SIGTERM, as the one that it is forked from, until it has a handler of its own."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send("deaf")
    pipe.recv()
    signal.signal(signal.SIGTERM, stop)
    pipe.send("hears")
    while not stopped:
        signal.pause()


def test_a_worker_that_could_not_hear_yet_is_asked_to_stop_again():
    ours, theirs = mp.Pipe()
    worker = object.__new__(local._Worker)
    worker.process = mp.get_context("fork").Process(target=slow_to_hear, args=(theirs,), daemon=True)
    worker.process.start()
    assert ours.recv() == "deaf"
    worker.stop()
    ours.send("go on")
    assert ours.recv() == "hears"
    while worker.process.is_alive():
        worker.stop()
        worker.process.join(0.1)
    assert worker.process.exitcode == 0


@pytest.mark.parametrize(("level", "error", "others"), [(0, None, [1, 2]), (1, None, []), (0, SweepError("x", ""), [])])
def test_no_worker_begins_in_a_sweep_that_stops(monkeypatch, level, error, others):
    class Worker:
        def received(self):
            return [Ready()]

    job = type("Job", (), {"workers": 3})()
    engine = local.LocalEngine(job, Watcher(on_event=lambda event: None, stop_level=lambda: level), lambda: None)
    engine.error = error
    started = []
    monkeypatch.setattr(engine, "_start", started.append)
    engine._hear(Worker())
    assert started == others


def test_a_sweep_is_tidied_up_unless_its_database_is_lost():
    done = []
    steps = (lambda: done.append("heal"), lambda: done.append("end"))
    with ending_with(*steps):
        done.append("run")
    assert done == ["run", "heal", "end"]
    with pytest.raises(SweepError), ending_with(*steps):
        raise SweepError("workers died", "")
    assert done[3:] == ["heal", "end"]
    with pytest.raises(StorageLost), ending_with(*steps):
        raise StorageLost("away", "")
    assert len(done) == 5


def test_workers_on_other_nodes_do_not_bear_this_machines_name(monkeypatch):
    monkeypatch.setenv("HARNESS_MACHINE", "here")
    monkeypatch.setenv("HARNESS_GRACE_S", "7")
    found = forwarded_environment()
    assert found["HARNESS_GRACE_S"] == "7"
    assert "HARNESS_MACHINE" not in found
