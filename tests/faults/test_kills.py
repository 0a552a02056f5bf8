"""kill -9 at exact places: the sweep reaches its budget with the results of one that nobody disturbed."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from harness.home import Home
from harness.sweep.trials import KILLED
from tests.conftest import sharing_weights
from tests.e2e.test_sweep import Project
from tests.faults.barrier import INJECTION, Barrier
from tests.faults.checks import QUICK, check_all, outcome

STUDY = QUICK.replace("kimg = 0.4", "kimg = 0.8").replace("rungs = [0.1]", "rungs = [0.2, 0.4]")
STEP = "harness.gan.trainer:_Run._update"
SCORE = "harness.scoring.scorer:Scorer.__call__"
CHECKPOINT = "os:fsync@save_checkpoint"
BEFORE_TELL = "harness.sweep.trials:Trials.end"
AFTER_TELL = "harness.sweep.worker:_conclude"
SENDING = "harness.tracking.spool:_send"
REPORT = "os:fsync@build_report"


def make_project(folder, weights_home: Home, images) -> Project:
    project = Project(folder, sharing_weights(folder, weights_home), images)
    (folder / "search_spaces" / "tiny.toml").write_text(STUDY)
    project.env |= {"HARNESS_CHECKPOINT_S": "0", "WORKERS": "1"}
    return project


def with_barrier(project: Project, barrier: Barrier) -> dict[str, str]:
    return {**barrier.env, "PYTHONPATH": f"{INJECTION}{os.pathsep}{project.env['PYTHONPATH']}"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from PIL import Image

    from tests.conftest import blobs

    folder = tmp_path_factory.mktemp("images")
    for index, pixels in enumerate(blobs(32)):
        Image.fromarray(pixels[..., 0]).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, weights_home, images):
    project = make_project(tmp_path_factory.mktemp("whole"), weights_home, images)
    project.run("sweep")
    return outcome(project.home, check_all(project.home, "tiny", 4))


def finish(process) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "Traceback" not in output, output
    return output


def test_workers_killed_at_every_stage_of_a_trial(tmp_path, weights_home, images, undisturbed):
    project = make_project(tmp_path, weights_home, images)
    barrier = Barrier(step=STEP, score=SCORE, checkpoint=CHECKPOINT, before=BEFORE_TELL, after=AFTER_TELL, send=SENDING)
    process = project.start("sweep", **with_barrier(project, barrier))
    stages = [("step", 30), ("checkpoint", 2), ("score", 2), ("before", 1), ("after", 1), ("send", 3)]
    for point, nth in stages:
        # The supervisor sends journals, too: of workers that died.
        barrier.wait(point, nth=nth, other_than=process.pid).kill()
    barrier.pass_on()
    output = finish(process)
    record = check_all(project.home, "tiny", 4)
    assert outcome(project.home, record) == undisturbed
    killed = [trial for trial in record.trials if trial.reason == KILLED]
    assert len(killed) >= 4, output
    assert output.count("starting another") == len(stages)


def test_the_supervisor_killed_and_then_everything_at_once(tmp_path, weights_home, images, undisturbed):
    project = make_project(tmp_path, weights_home, images)
    barrier = Barrier(step=STEP, checkpoint=CHECKPOINT, report=REPORT)
    process = project.start("sweep", **with_barrier(project, barrier))
    arrival = barrier.wait("step", nth=20)
    os.kill(process.pid, signal.SIGKILL)  # its worker notices, saves and ends
    arrival.release()
    barrier.pass_on()
    process.communicate(timeout=300)
    process = project.start("sweep", **with_barrier(project, barrier))
    barrier.wait("checkpoint", nth=3)
    os.killpg(process.pid, signal.SIGKILL)  # the power cut
    process.communicate(timeout=300)
    process = project.start("sweep", **with_barrier(project, barrier))
    barrier.wait("report", nth=2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    barrier.pass_on()
    project.run("sweep")
    assert outcome(project.home, check_all(project.home, "tiny", 4)) == undisturbed
    assert (project.folder / "reports" / "tiny" / "report.md").read_text().startswith("# ")


@pytest.mark.parametrize("point", [STEP, SCORE])
def test_sigterm_saves_and_leaves_the_trial_to_be_continued(tmp_path, weights_home, images, undisturbed, point):
    project = make_project(tmp_path, weights_home, images)
    barrier = Barrier(here=point)
    process = project.start("sweep", **with_barrier(project, barrier))
    arrival = barrier.wait("here", nth=2)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(arrival.pid, signal.SIGTERM)  # a cluster tells every process
    arrival.release()
    barrier.pass_on()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    states = [trial.state for trial in project.record().trials]
    assert "RUNNING" not in states
    project.run("sweep")
    assert outcome(project.home, check_all(project.home, "tiny", 4)) == undisturbed


@pytest.mark.parametrize("point", [CHECKPOINT, "harness.tracking.spool:Spool._append"], ids=["checkpoint", "spool"])
def test_a_full_disk_loses_nothing(tmp_path, weights_home, images, undisturbed, point):
    project = make_project(tmp_path, weights_home, images)
    barrier = Barrier(here=point if "fsync" in point else "os:fsync@_append")
    process = project.start("sweep", **with_barrier(project, barrier))
    barrier.wait("here", nth=3).release(do="error", errno=errno.ENOSPC)
    barrier.pass_on()
    output, _ = process.communicate(timeout=300)
    if "fsync@save" in point:
        assert process.returncode == 1
        assert "the disk is full" in output
        assert "Free some space and start again" in output
        project.run("sweep")
        record = check_all(project.home, "tiny", 4)
    else:
        assert process.returncode == 0
        assert "tracking cannot be kept" in output
        record = project.record()
    assert outcome(project.home, record) == undisturbed
