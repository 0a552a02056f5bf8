"""What the engines promise of stopping, and of a database that is lost."""

from __future__ import annotations

import multiprocessing as mp
import signal
from multiprocessing.connection import Connection

import psutil
import pytest

from harness.errors import StorageLost, SweepError
from harness.machine import processes
from harness.machine.processes import Machines
from harness.spec.files import parse_study
from harness.sweep import run
from harness.sweep.engines import local
from harness.sweep.engines.ray import forwarded_environment
from harness.sweep.messages import Ready, Watcher
from harness.sweep.run import ending_with, with_workers
from tests.conftest import TINY_STUDY

STUDY = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")
GIB = 2**30


@pytest.mark.parametrize(
    ("cores", "free", "trials", "device", "workers", "why"),
    [
        (2, 20 * GIB, 16, "cpu", 2, "one for each core"),
        (16, 100 * GIB, 16, "cpu", 4, "few trials"),
        (16, 100 * GIB, 400, "cpu", 16, "one for each core"),
        (8, 5 * GIB, 100, "cpu", 3, "of memory for each"),
        (8, GIB // 2, 100, "cpu", 1, "of memory for each"),
        (2, 20 * GIB, 3, "cpu", 1, "few trials"),
        (16, 100 * GIB, 16, "cuda", 2, "one for each GPU"),
        (16, 100 * GIB, 1, "cuda", 1, "one for each GPU"),
    ],
)
def test_workers_are_as_many_as_are_fastest(monkeypatch, cores, free, trials, device, workers, why):
    monkeypatch.setattr(local, "usable_cores", lambda: cores)
    monkeypatch.setattr(local, "free_memory", lambda: free)
    monkeypatch.setattr(local, "call_with_torch", lambda function: ("0", "1"))
    found, reason = local.workers_for(STUDY, trials, device)
    assert (found, why in reason) == (workers, True)


@pytest.mark.parametrize(
    ("trials", "device", "workers", "lanes"),
    [
        (400, "cpu", 2, 1),
        (400, "cuda", 2, 8),
        (400, "cuda", 4, 4),
        (400, "cuda", 40, 1),
        (16, "cuda", 2, 2),
        (3, "cuda", 1, 1),
    ],
)
def test_a_gpu_has_up_to_eight_trials_at_once(monkeypatch, trials, device, workers, lanes):
    monkeypatch.setattr(local, "call_with_torch", lambda function: ("0", "1"))
    assert local.lanes_for(STUDY, trials, device, workers) == lanes


def test_lanes_are_said_unless_they_were_asked_for(monkeypatch):
    monkeypatch.setattr(local, "call_with_torch", lambda function: ("0", "1"))
    said = []
    chosen = with_workers(Machines(), 0, STUDY, 400, "cuda", said.append)
    assert (chosen.workers, chosen.lanes, chosen.at_once) == (2, 8, 16)
    assert with_workers(Machines(workers=1), 0, STUDY, 400, "cuda", said.append).lanes == 8
    assert with_workers(Machines(workers=1, lanes=3), 0, STUDY, 400, "cuda", said.append).lanes == 3
    assert said == [
        "2 workers, up to 8 trials at once in each: one for each GPU; WORKERS=N and LANES=N set other numbers",
        "1 worker, up to 8 trials at once in each: as asked; WORKERS=N and LANES=N set other numbers",
    ]


def test_a_number_of_workers_is_kept_with_the_study_unless_another_is_asked_for(monkeypatch):
    monkeypatch.setattr(local, "usable_cores", lambda: 2)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (0.4, 0.0, 0.0))
    said = []
    assert with_workers(Machines(), 3, STUDY, 16, "cpu", said.append).workers == 3
    assert said == ["3 workers, 1 thread each: as when the study started; WORKERS=N sets another number"]
    assert with_workers(Machines(workers=5), 3, STUDY, 16, "cpu", said.append).workers == 5
    assert len(said) == 1, "what was asked for needs no word"


@pytest.mark.parametrize(
    ("load", "workers", "room"),
    [
        ((0.4, 1, 1), None, 0),
        ((1.3, 1, 0), None, 3),
        ((9, 8, 9), None, 1),
        ((2.8, 3, 3), 4, 0),
        ((2, 0.4, 0), None, 0),
    ],
)
def test_a_busy_machine_is_said_with_the_number_of_workers_that_leaves_room(monkeypatch, load, workers, room):
    monkeypatch.setattr(local, "usable_cores", lambda: 4)
    monkeypatch.setattr(run, "usable_cores", lambda: 4)
    monkeypatch.setattr(local, "free_memory", lambda: 100 * GIB)
    monkeypatch.setattr(psutil, "getloadavg", lambda: load)
    said = []
    assert with_workers(Machines(workers=workers), 0, STUDY, 400, "cpu", said.append).workers == 4
    busy = [text for text in said if "busy" in text]
    assert [text.endswith(f"WORKERS={room} leaves room") for text in busy] == [True] * bool(room)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_containers_share_of_the_cores_counts(monkeypatch, tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(processes, "_CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert processes.usable_cores() == cores


@pytest.mark.parametrize(
    "names", [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]
)
def test_a_containers_limit_of_memory_counts(monkeypatch, tmp_path, names):
    monkeypatch.setattr(processes, "_CONTROL_GROUP", tmp_path)
    whole = processes.free_memory()
    assert whole > 4096
    for name, number in zip(names, (6000, 1904), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{number}\n")
    assert processes.free_memory() == 4096


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
