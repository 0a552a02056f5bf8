"""Bad numbers, no memory and a wrong clock: a trial ends with the reason, and its neighbours have their results."""

from __future__ import annotations

import math

from harness.sweep.worker import DIVERGED_VALUE
from tests.e2e.test_sweep import finish
from tests.faults.barrier import Barrier
from tests.faults.checks import Fault, check_all, outcome
from tests.faults.conftest import STEP, STUDY, with_barrier

LOSS = "harness.gan.networks:generator_loss"
IMAGES = "harness.gan.networks:Generator.forward@samples"
MEGABYTE = 2**20


def test_numbers_that_are_none_are_never_the_best(bench):
    """In a gradient, in a loss, in generated images; a worker without memory is a failure with a reason."""
    # With this seed no generator collapses by itself.
    project = bench.project(STUDY.replace("[sampler]", "[sampler]\nseed = 2"))
    barrier = Barrier(step=STEP, loss=LOSS, images=IMAGES)
    process = project.start("sweep", **with_barrier(project, barrier))
    barrier.wait("step", nth=9).release(do="nan-gradient")
    first = barrier.wait("loss", nth=30)
    first.release(do="nan")
    barrier.wait("images").release(do="nan")  # of a score
    barrier.wait("step", nth=9).release(do="memory", bytes=512 * MEGABYTE)
    barrier.pass_on()
    output = finish(process)
    record = check_all(
        project.home, "tiny", 4, Fault(name="NaN in a gradient, a loss, generated images; no memory", times=4)
    )
    bad = [trial for trial in record.trials if trial.attrs.diverged]
    assert len(bad) == 3, output
    assert all(trial.state == "PRUNED" and DIVERGED_VALUE in trial.intermediate.values() for trial in bad)
    assert [trial.reason[:5] for trial in record.trials if trial.state == "FAIL"] == ["oom: "]
    best = record.best
    assert best is not None
    assert math.isfinite(best.value)
    assert not best.attrs.diverged
    text = (project.folder / "reports" / "tiny" / "report.md").read_text()
    assert "diverged" in text
    assert "nan" not in text.lower()


def test_a_clock_that_is_stepped_by_an_hour_changes_nothing(bench, undisturbed):
    project = bench.project()
    barrier = Barrier(step=STEP)
    process = project.start("sweep", **with_barrier(project, barrier))
    for seconds in (3600, -7200, 3600):
        barrier.wait("step", nth=40).release(do="clock", seconds=seconds)
        barrier.wait("step").release()
    barrier.pass_on()
    finish(process)
    fault = Fault(name="clock of the worker stepped by an hour, two back and one forward", times=3)
    assert outcome(project.home, check_all(project.home, "tiny", 4, fault)) == undisturbed
