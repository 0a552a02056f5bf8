"""kill -9 in a confirmation, in claims and in an audit: started again, they come to what nobody disturbed came to."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from harness.home import Home
from harness.store.studies import started_study, study_to_record
from tests.e2e.test_plans import CLAIM
from tests.e2e.test_sweep import Project
from tests.faults.barrier import Barrier
from tests.faults.checks import Fault, check_all, finished, outcome
from tests.faults.conftest import CHECKPOINT, SCORE, STEP, TELL, Bench, Watch, with_barrier
from tests.faults.options import long_only

SHORT = {"TRIALS": "2", "SEEDS": "3", "SAMPLINGS": "2", "TOP": "2"}


def searched(bench: Bench) -> tuple[Project, Home]:
    """A project whose study is finished, and a copy of all that its sweep has left."""
    project = bench.project(**SHORT)
    claims = project.folder / "search_spaces" / "claims"
    claims.mkdir()
    (claims / "high-lr.toml").write_text(CLAIM)
    project.run("sweep")
    calm = Home(project.folder / "calm")
    shutil.copytree(project.home.root, calm.root, symlinks=True)
    return project, calm


@long_only
@pytest.mark.parametrize(("command", "writes"), [("confirm", "build_report"), ("claims", "build_claims_report")])
def test_a_plan_killed_at_every_stage(bench, command, writes):
    project, calm = searched(bench)
    study = f"tiny-{command}"
    project.run(command, HARNESS_HOME=str(calm.root))
    undisturbed = study_to_record(started_study(study, calm))
    wanted = outcome(calm, undisturbed)

    barrier = Barrier(step=STEP, score=SCORE, checkpoint=CHECKPOINT, before=TELL, report=f"os:fsync@{writes}")
    process = project.start(command, **with_barrier(project, barrier))
    watch = Watch()
    stages = [("step", 30), ("checkpoint", 2), ("score", 3), ("before", 1)]
    for point, nth in stages:
        barrier.wait(point, nth=nth, other_than=process.pid).kill()
        watch.start()
        barrier.wait("step").release()
        watch.stop()
    barrier.wait("checkpoint")
    os.killpg(process.pid, signal.SIGKILL)  # the power cut
    process.communicate(timeout=300)
    process = project.start(command, **with_barrier(project, barrier))
    barrier.wait("report")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    barrier.pass_on()
    project.run(command)
    what = "a confirmation" if command == "confirm" else "claims"
    fault = Fault(
        name=f"kill -9 in {what}: of the worker in a step, writing a checkpoint, scoring, before tell; of everything "
        "in a checkpoint and in the report",
        times=len(stages) + 2, recovery_s=watch.seconds,
    )  # fmt: skip
    record = check_all(project.home, study, len(finished(undisturbed)), fault)
    assert outcome(project.home, record) == wanted
    assert {t.attrs.position: t.attrs.samplings for t in record.complete} == {
        t.attrs.position: t.attrs.samplings for t in undisturbed.complete
    }


def test_an_audit_killed_between_two_trainings(bench):
    project, calm = searched(bench)
    assert "2 trainings audited" in project.run("audit", HARNESS_HOME=str(calm.root), TOP="2")
    barrier = Barrier(picture="harness.api.scoring:save_png")
    process = project.start("audit", **with_barrier(project, barrier), TOP="2")
    barrier.wait("picture", nth=2).kill()
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert "1 training audited" in project.run("audit", TOP="2")
    for trial in study_to_record(started_study("tiny", calm)).complete:
        folder = trial.attrs.folder
        here, there = (json.loads((home.root / folder / "audit.json").read_text()) for home in (project.home, calm))
        assert here == there
        assert len(list((project.home.root / folder).glob("*.png"))) == len(list((calm.root / folder).glob("*.png")))
