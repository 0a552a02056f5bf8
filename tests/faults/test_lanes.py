"""A worker of two lanes is killed and stopped while both train: each trial comes to what it comes to alone."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest

from harness.store.trials import KILLED
from tests.e2e.test_sweep import finish
from tests.faults.barrier import Barrier
from tests.faults.checks import Fault, check_all, outcome
from tests.faults.conftest import SCORE, STEP, STUDY, Watch, with_barrier

# What a trial is depends on its position alone.
ALONE = STUDY.replace('name = "median"\nn_startup_trials = 2', 'name = "none"').replace(
    "[sampler]\nn_startup_trials = 2", '[sampler]\nname = "random"'
)


@pytest.fixture(scope="module", autouse=True)
def _one_core():
    """One thread for each trial, however many there are at once: the last bits depend on it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def alone(bench) -> dict[int, object]:
    project = bench.project(ALONE)
    project.run("sweep")
    return outcome(project.home, check_all(project.home, "tiny", 4))


def test_a_worker_of_two_lanes_killed_and_stopped_while_both_train(bench, alone):
    project = bench.project(ALONE, LANES="2")
    barrier = Barrier(step=STEP, score=SCORE)
    process = project.start("sweep", **with_barrier(project, barrier))
    watch = Watch()
    for point in ("step", "score"):
        held = barrier.wait(point)
        barrier.wait("step").kill()  # the other lane's, for the first one is held
        held.release()
        watch.start()
        barrier.wait("step").release()
        watch.stop()
    held = [barrier.wait("step"), barrier.wait("step")]
    os.killpg(process.pid, signal.SIGTERM)
    for arrival in held:
        arrival.release()
    barrier.pass_on()
    output = finish(process, 130)
    reasons = Counter(trial.reason.partition(" at ")[0] for trial in project.record().trials if trial.state == "FAIL")
    assert reasons == {KILLED: 4, "interrupted: stopped": 2}, output
    assert output.count("starting another") == 2
    project.run("sweep")
    fault = Fault(name="a worker of two trials at once killed twice, and SIGTERM", times=3, recovery_s=watch.seconds)
    assert outcome(project.home, check_all(project.home, "tiny", 4, fault)) == alone
