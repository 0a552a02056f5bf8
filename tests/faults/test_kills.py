"""kill -9 at exact places: the sweep reaches its budget with the results of one that nobody disturbed."""

from __future__ import annotations

import os
import signal

import pytest

from harness.store.trials import KILLED
from tests.e2e.test_sweep import finish
from tests.faults.barrier import Barrier
from tests.faults.checks import Fault, check_all, outcome
from tests.faults.conftest import CHECKPOINT, SCORE, STEP, TELL, Watch, with_barrier
from tests.faults.options import long_only

AFTER_TELL = "harness.sweep.worker:_conclude"
SENDING = "harness.tracking.mlflow:MlflowTracker.artifact"
REPORT = "os:fsync@build_report"


def test_workers_killed_at_every_stage_of_a_trial(bench, undisturbed):
    project = bench.project()
    barrier = Barrier(step=STEP, score=SCORE, checkpoint=CHECKPOINT, before=TELL, after=AFTER_TELL, send=SENDING)
    process = project.start("sweep", **with_barrier(project, barrier))
    stages = [("step", 30), ("checkpoint", 2), ("score", 2), ("before", 1), ("after", 1), ("send", 3)]
    watch = Watch()
    for point, nth in stages:
        # The supervisor sends journals, too: of workers that died.
        barrier.wait(point, nth=nth, other_than=process.pid).kill()
        if point != "send":  # nothing may be left to train by then
            watch.start()
            barrier.wait("step").release()
            watch.stop()
    barrier.pass_on()
    output = finish(process)
    fault = Fault(
        name="kill -9 of the worker in a step, writing a checkpoint, scoring, between Optuna's `report` and "
        "`tell`, between database and MLflow, sending",
        times=len(stages), recovery_s=watch.seconds,
    )  # fmt: skip
    record = check_all(project.home, "tiny", 4, fault)
    assert outcome(project.home, record) == undisturbed
    killed = [trial for trial in record.trials if trial.reason == KILLED]
    assert len(killed) >= 4, output
    assert output.count("starting another") == len(stages)


def test_the_supervisor_killed_and_then_everything_at_once(bench, undisturbed):
    project = bench.project()
    barrier = Barrier(step=STEP, checkpoint=CHECKPOINT, report=REPORT)
    watch = Watch()
    process = project.start("sweep", **with_barrier(project, barrier))
    arrival = barrier.wait("step", nth=20)
    os.kill(process.pid, signal.SIGKILL)  # its worker notices, saves and ends
    arrival.release()
    barrier.pass_on()
    process.communicate(timeout=300)
    watch.start()
    process = project.start("sweep", **with_barrier(project, barrier))
    barrier.wait("step").release()
    watch.stop()
    barrier.wait("checkpoint", nth=3)
    os.killpg(process.pid, signal.SIGKILL)  # the power cut
    process.communicate(timeout=300)
    watch.start()
    process = project.start("sweep", **with_barrier(project, barrier))
    barrier.wait("step").release()
    watch.stop()
    barrier.wait("report", nth=2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    barrier.pass_on()
    project.run("sweep")
    fault = Fault(
        name="kill -9 of the supervisor, of every process at once, and while the Markdown report is written; "
        "started again",
        times=3, recovery_s=watch.seconds,
    )  # fmt: skip
    assert outcome(project.home, check_all(project.home, "tiny", 4, fault)) == undisturbed
    report = project.folder / "reports" / "tiny"
    assert (report / "report.md").read_text().startswith("# ")
    assert [path.name for path in report.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("point", [pytest.param(STEP, id="step", marks=long_only), pytest.param(SCORE, id="score")])
def test_sigterm_saves_and_leaves_the_trial_to_be_continued(bench, undisturbed, point):
    project = bench.project()
    barrier = Barrier(here=point)
    process = project.start("sweep", **with_barrier(project, barrier))
    arrival = barrier.wait("here", nth=2)
    os.killpg(process.pid, signal.SIGTERM)  # a cluster tells every process
    arrival.release()
    barrier.pass_on()
    watch = Watch()
    watch.start()
    output = ""
    for line in process.stdout:
        output += line
        if " interrupted (" in line:  # in the database by then, and its checkpoint on the disk
            watch.stop()
            break
    output += finish(process, 130)
    states = [trial.state for trial in project.record().trials]
    assert "RUNNING" not in states, output
    project.run("sweep")
    where = "a step" if point == STEP else "scoring"
    fault = Fault(name=f"SIGTERM in {where} (recovery: until its trial could be continued)", times=1,
                  recovery_s=watch.seconds)  # fmt: skip
    assert outcome(project.home, check_all(project.home, "tiny", 4, fault)) == undisturbed
