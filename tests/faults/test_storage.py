"""The database goes away, or is somebody else's for a while: waited out within the grace period, and else continued."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, contextmanager

import pytest

from tests.e2e.test_sweep import Project, finish
from tests.faults.barrier import Barrier
from tests.faults.checks import Fault, check_all, outcome
from tests.faults.conftest import ASK, RUNG, STEP, STUDY, TELL, Watch, with_barrier
from tests.faults.options import MANY, OUTAGES, long_only, pause


def through_outages(project: Project, outage: Callable[[], AbstractContextManager[None]], code: int) -> Watch:
    """A sweep with an outage in Optuna's `ask`, `report` and `tell`, and in a step.

    It is started again where each ends it with a code.
    """
    barrier = Barrier(ask=ASK, step=STEP, rung=RUNG, tell=TELL)
    environment = with_barrier(project, barrier)
    watch = Watch()
    process = project.start("sweep", **environment)
    for point, nth in (("ask", 2), ("step", 12), ("rung", 1), ("tell", 1)):
        arrival = barrier.wait(point, nth=nth)
        with outage():
            arrival.release()
            barrier.pass_on()
        watch.start()
        if code:
            assert "did not answer for" in finish(process, code)
            process = project.start("sweep", **environment)
        barrier.wait("step").release()
        watch.stop()
    barrier.pass_on()
    finish(process)
    return watch


@pytest.mark.parametrize(("seconds", "grace"), OUTAGES)
def test_postgresql_stopped_in_ask_step_report_and_tell(bench, undisturbed, postgres, monkeypatch, seconds, grace):
    project = bench.project(HARNESS_STORAGE=postgres.database(), HARNESS_GRACE_S=str(grace))

    @contextmanager
    def stopped():
        postgres.stop()
        yield
        pause(seconds)
        postgres.start()

    too_long = seconds > grace
    watch = through_outages(project, stopped, 75 if too_long else 0)
    what = "exit code 75, started again" if too_long else "waited out"
    fault = Fault(
        name=f"PostgreSQL stopped for {seconds:g} s in Optuna's `ask`, `report` and `tell`, and in a step; "
        f"grace period {grace:g} s ({what})",
        times=4, recovery_s=watch.seconds,
    )  # fmt: skip
    monkeypatch.setenv("HARNESS_STORAGE", project.env["HARNESS_STORAGE"])
    assert outcome(project.home, check_all(project.home, "tiny", 4, fault)) == undisturbed


def test_sqlite_locked_by_another_process(bench, undisturbed):
    project = bench.project()

    @contextmanager
    def locked():
        with closing(sqlite3.connect(project.home.root / "optuna.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield
            pause(2.0)
            other.execute("ROLLBACK")

    watch = through_outages(project, locked, 0)
    fault = Fault(
        name="SQLite locked by another process for 2 s in Optuna's `ask`, `report` and `tell`, and in a step",
        times=4, recovery_s=watch.seconds,
    )  # fmt: skip
    assert outcome(project.home, check_all(project.home, "tiny", 4, fault)) == undisturbed


@long_only
def test_eight_workers_on_postgresql(bench, postgres, monkeypatch):
    """Many short trials: none lost, none doubled."""
    study = STUDY.replace("trials = 4", f"trials = {MANY}").replace("kimg = 0.8", "kimg = 0.2")
    study = study.replace("rungs = [0.2, 0.4]", "rungs = [0.1]")
    project = bench.project(study, HARNESS_STORAGE=postgres.database(), HARNESS_CHECKPOINT_S="60")
    project.run("sweep", WORKERS="8")
    monkeypatch.setenv("HARNESS_STORAGE", project.env["HARNESS_STORAGE"])
    fault = Fault(name=f"no fault: 8 workers on PostgreSQL, {MANY} short trials", times=0)
    check_all(project.home, "tiny", MANY, fault)
