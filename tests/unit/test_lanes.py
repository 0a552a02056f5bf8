"""Two trials at once in one worker: each comes to what it comes to alone, and one lane's trouble stays its own."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from harness.errors import SweepError
from harness.home import Home
from harness.machine.processes import use_threads
from harness.store.database import write_study_attrs
from harness.store.records import StudyAttrs
from harness.store.studies import study_to_record
from harness.sweep import lanes as module
from harness.sweep.lanes import Lanes
from harness.sweep.messages import Event, Progressed, Started
from harness.sweep.worker import work
from tests.conftest import CPU
from tests.faults.checks import outcome
from tests.unit.test_worker import SPEC, Env, Objective

TRIALS = 5
# What a trial is depends on its position alone.
ALONE = SPEC.model_copy(
    update={
        "sampler": SPEC.sampler.model_copy(update={"name": "random"}),
        "pruner": SPEC.pruner.model_copy(update={"name": "none"}),
    }
)


class Worker:
    """A worker of some lanes, whose first trials begin together; ``env`` is what it is given."""

    def __init__(self, folder: Path, lanes: int) -> None:
        self.env, self.stopping, self.events = Env(Home(folder), ALONE), False, list[Event]()
        self.lanes = self.env.lanes = Lanes(lanes, lambda: self.stopping)
        self.env.publish = self.publish
        self.meeting, self.met = threading.Barrier(lanes), threading.local()

    def publish(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Started) and not hasattr(self.met, "once"):
            self.met.once = True
            self.meeting.wait(60)

    def run(self) -> None:
        setup = self.env.setup
        write_study_attrs(self.env.trials.study, StudyAttrs(target=TRIALS))
        self.lanes.run(lambda: work(setup), CPU, 1)

    @property
    def record(self):
        return study_to_record(self.env.trials.study)

    @property
    def outcome(self):
        return outcome(self.env.home, self.record)


@pytest.fixture(scope="module", autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    use_threads(before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """By position, what each trial comes to without a neighbour."""
    worker = Worker(tmp_path_factory.mktemp("alone"), 1)
    worker.run()
    assert len(worker.outcome) == TRIALS
    return worker.outcome


@pytest.fixture
def worker(tmp_path) -> Worker:
    return Worker(tmp_path / "runs", 2)


def on(lane: int) -> bool:
    return threading.current_thread().name == f"lane {lane}"


def test_each_trial_gets_bit_for_bit_what_it_gets_alone(worker, alone):
    worker.run()
    assert worker.outcome == alone
    assert len(worker.record.trials) == TRIALS


def test_a_lane_whose_memory_runs_out_leaves_it_to_the_others(worker, alone):
    class HungryOnce(Objective):
        fed = False

        def __call__(self, *arguments, **named):
            if on(1) and not self.fed:
                self.fed = True
                torch.empty(2**50, dtype=torch.uint8)  # really
            return super().__call__(*arguments, **named)

    worker.env.rung = HungryOnce("fid_mnv2_20")
    worker.run()
    assert worker.outcome == alone
    (failed,) = [trial for trial in worker.record.trials if trial.state == "FAIL"]
    assert failed.reason.startswith("interrupted: oom alongside 1 other trials; queued again: ")
    assert worker.lanes.open == 1


def test_the_last_lane_stays():
    lanes = Lanes(2)
    lanes.open = 2
    assert [lanes.leave(), lanes.leave()] == [True, False]
    assert (lanes.open, lanes.most) == (1, 1), "no other lane takes its place"


def test_an_error_of_the_study_in_one_lane_ends_the_worker_when_the_others_have_saved(worker):
    class Broken(Objective):
        def __call__(self, *arguments, **named):
            if on(1):
                raise RuntimeError("the GPU fell off the bus")
            for thread in threading.enumerate():
                if thread.name == "lane 1":
                    thread.join(60)
            return super().__call__(*arguments, **named)

    worker.env.rung = Broken("fid_mnv2_20")
    with pytest.raises(SweepError, match="3 trials in a row failed; the last: RuntimeError: the GPU fell"):
        worker.run()
    states = Counter((trial.state, trial.reason.partition(" at ")[0]) for trial in worker.record.trials)
    assert states == {
        ("FAIL", "RuntimeError: the GPU fell off the bus"): 3, ("FAIL", "interrupted: stopped"): 1, ("WAITING", ""): 1,
    }  # fmt: skip


def test_a_lost_device_ends_the_worker_whatever_the_other_lanes_do(worker):
    released = threading.Event()

    class Lost(Objective):
        def __call__(self, *arguments, **named):
            if on(1):
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            released.wait(60)
            return super().__call__(*arguments, **named)

    worker.env.rung = Lost("fid_mnv2_20")
    with pytest.raises(torch.AcceleratorError):
        worker.run()
    assert [trial.state for trial in worker.record.trials] == ["RUNNING", "RUNNING"], "until the process is found dead"
    released.set()
    for thread in threading.enumerate():
        if thread.name == "lane 0":
            thread.join()


def test_lanes_stop_at_their_next_snapshot_and_are_continued_bit_for_bit(worker, alone):
    def stopping(event: Event) -> None:
        worker.stopping = worker.stopping or isinstance(event, Progressed)
        worker.publish(event)

    worker.env.publish = stopping
    worker.run()
    assert [(trial.state, trial.reason[:20]) for trial in worker.record.trials] == [
        *[("FAIL", "interrupted: stopped")] * 2, *[("WAITING", "")] * 2,
    ]  # fmt: skip
    again = Worker(worker.env.home.root, 2)
    again.run()
    assert again.outcome == alone


def test_the_main_thread_vouches_for_a_worker_whose_lanes_all_ask(monkeypatch):
    monkeypatch.setattr(module, "_LOOK_S", 0.001)
    vouched = threading.Semaphore(0)

    def should_stop() -> bool:
        if threading.current_thread() is threading.main_thread():
            vouched.release()
        return False

    lanes = Lanes(2, should_stop)

    def work() -> None:
        while not vouched.acquire(blocking=False):
            lanes.stop()

    lanes.run(work, CPU, 1)


def test_on_a_gpu_lanes_open_one_after_another_as_memory_allows(monkeypatch):
    """Each takes 10 GB of 60 once it has trained; for another 15 must be free, and what a score takes."""
    reserved, full, opened = [0], threading.Event(), []

    def left(device):
        free = 60e9 - reserved[0]
        if free < 19e9:
            full.set()
        return free, 60e9

    monkeypatch.setattr(module, "_LOOK_S", 0.001)
    monkeypatch.setattr(module, "_own_stream", lambda device: module.nullcontext())
    monkeypatch.setattr(module, "_reserved", lambda device: reserved[0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", left)
    lanes = Lanes(8)

    def work() -> None:
        opened.append(reserved[0])
        reserved[0] += 10e9
        lanes.has_trained()
        full.wait(60)

    lanes.run(work, torch.device("cuda"), 1)
    assert opened == [0, 10e9, 20e9, 30e9, 40e9]
