"""kill -9 while a trial is scored, saved, paused and promoted: the sweep ends as one that nobody disturbed."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.test_sweep import finish
from tests.faults.barrier import Barrier
from tests.faults.checks import Fault, check_all, outcome
from tests.faults.conftest import SCORE, STUDY, Watch, with_barrier

PROMOTION = STUDY.replace("trials = 4", "trials = 7").replace(
    'name = "median"\nn_startup_trials = 2', 'name = "promotion"\nkeep = [3, 2]'
)
STATE = "harness.store.database:PatientStorage.set_trial_state_values"
POINTS = {
    "in_its_score": SCORE,
    "saving_the_score": "os:fsync@score_rung",
    "between_score_and_pause": "harness.store.trials:Trials._pause",
    "half_paused": f"{STATE}@_pause",
    "after_the_pause": "harness.sweep.worker:_conclude",
    "promoting": f"{STATE}@_promote",
    "half_promoted": "harness.store.trials:Trials._write@_promote",
    "pruning_the_rest": f"{STATE}@_prune",
}


@pytest.fixture(scope="module")
def undisturbed_promotion(bench) -> dict[int, object]:
    project = bench.project(PROMOTION)
    project.run("sweep")
    record = check_all(project.home, "tiny", 7)
    states = [trial.state for trial in record.trials]
    assert states.count("COMPLETE") >= 1
    assert states.count("COMPLETE") + states.count("PRUNED") == 7 == len(states)
    return outcome(project.home, record)


def test_workers_killed_at_every_stage_of_pausing_and_promoting(bench, undisturbed_promotion):
    project = bench.project(PROMOTION)
    barrier = Barrier(**POINTS, step="harness.gan.run:Run._update")
    process = project.start("sweep", **with_barrier(project, barrier))
    watch = Watch()
    for point in POINTS:
        barrier.wait(point, other_than=process.pid).kill()
        if point != "pruning_the_rest":  # nothing is trained after it
            watch.start()
            barrier.wait("step").release()
            watch.stop()
    barrier.pass_on()
    output = finish(process)
    fault = Fault(
        name="kill -9 of the worker scoring at a rung, saving the score, between score and pause, in the pause, "
        "promoting, and pruning what was not promoted",
        times=len(POINTS), recovery_s=watch.seconds,
    )  # fmt: skip
    record = check_all(project.home, "tiny", 7, fault)
    assert outcome(project.home, record) == undisturbed_promotion
    assert output.count("starting another") == len(POINTS)
    left = [trial for trial in record.trials if trial.state == "PRUNED"]
    assert not [path for trial in left for path in (project.home.root / trial.attrs.folder).glob("snapshot-*.pt")]


def test_everything_killed_while_trials_are_paused_and_interrupted_while_one_is_promoted(bench, undisturbed_promotion):
    project = bench.project(PROMOTION)
    barrier = Barrier(paused=POINTS["after_the_pause"], promoted=POINTS["half_promoted"])
    process = project.start("sweep", **with_barrier(project, barrier))
    barrier.wait("paused", nth=2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    process = project.start("sweep", **with_barrier(project, barrier))
    arrival = barrier.wait("promoted")
    os.kill(process.pid, signal.SIGINT)
    arrival.release()
    barrier.pass_on()
    finish(process, code=130)
    project.run("sweep")
    assert outcome(project.home, check_all(project.home, "tiny", 7)) == undisturbed_promotion
