"""The database goes away, or is somebody else's for a while: waited out within the grace period, and else continued."""

from __future__ import annotations

import sqlite3

import pytest

from tests.faults.barrier import Barrier
from tests.faults.checks import Fault, check_all, outcome
from tests.faults.conftest import ASK, RUNG, STEP, TELL, Watch, finish, with_barrier
from tests.faults.options import MANY, OUTAGES, long_only, pause

POINTS = {"ask": ASK, "step": STEP, "rung": RUNG, "tell": TELL}


@pytest.mark.parametrize(("seconds", "grace"), OUTAGES)
def test_postgresql_stopped_in_ask_step_report_and_tell(bench, undisturbed, postgres, monkeypatch, seconds, grace):
    if postgres.own:
        pytest.skip("the server is the user's own")
    project = bench.project(HARNESS_STORAGE=postgres.database(), HARNESS_GRACE_S=str(grace))
    barrier = Barrier(**POINTS)
    environment = with_barrier(project, barrier)
    watch = Watch()
    process = project.start("sweep", **environment)
    for point, nth in (("ask", 2), ("step", 12), ("rung", 1), ("tell", 1)):
        arrival = barrier.wait(point, nth=nth)
        postgres.stop()
        arrival.release()
        barrier.pass_on()
        pause(seconds)
        postgres.start()
        watch.start()
        if seconds > grace:
            assert "did not answer for" in finish(process, 75)
            process = project.start("sweep", **environment)
        barrier.wait("step").release()
        watch.stop()
    barrier.pass_on()
    output = finish(process)
    what = "exit code 75, started again" if seconds > grace else "waited out"
    fault = Fault(
        name=f"PostgreSQL stopped for {seconds:g} s in ask, in a step, in report and in tell; "
        f"grace period {grace:g} s ({what})",
        times=4, recovery_s=watch.seconds,
    )  # fmt: skip
    monkeypatch.setenv("HARNESS_STORAGE", project.env["HARNESS_STORAGE"])
    record = check_all(project.home, "tiny", 4, fault)
    assert outcome(project.home, record) == undisturbed, output


def test_sqlite_locked_by_another_process(bench, undisturbed):
    """Shorter than the grace period: waited out; longer: the worker's own exit code, and the next start goes on."""
    project = bench.project(HARNESS_GRACE_S="1")
    barrier = Barrier(**POINTS)
    environment = with_barrier(project, barrier)
    watch = Watch()
    process = project.start("sweep", **environment)
    for point, nth in (("ask", 2), ("step", 12), ("rung", 1), ("tell", 1)):
        arrival = barrier.wait(point, nth=nth)
        other = sqlite3.connect(project.home.root / "optuna.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        arrival.release()
        barrier.pass_on()
        pause(2.0)
        other.execute("ROLLBACK")
        other.close()
        watch.start()
        barrier.wait("step").release()
        watch.stop()
    barrier.pass_on()
    finish(process)
    fault = Fault(name="SQLite locked by another process for 2 s in ask, in a step, in report and in tell", times=4,
                  recovery_s=watch.seconds)  # fmt: skip
    assert outcome(project.home, check_all(project.home, "tiny", 4, fault)) == undisturbed


@long_only
def test_eight_workers_on_postgresql(bench, postgres, monkeypatch):
    """Many short trials: none lost, none doubled."""
    study = bench.project().folder / "search_spaces" / "tiny.toml"
    text = study.read_text().replace("trials = 4", f"trials = {MANY}").replace("kimg = 0.8", "kimg = 0.2")
    text = text.replace("rungs = [0.2, 0.4]", "rungs = [0.1]")
    project = bench.project(text, HARNESS_STORAGE=postgres.database(), HARNESS_CHECKPOINT_S="60")
    project.run("sweep", WORKERS="8")
    monkeypatch.setenv("HARNESS_STORAGE", project.env["HARNESS_STORAGE"])
    check_all(project.home, "tiny", MANY, Fault(name=f"none: 8 workers on PostgreSQL, {MANY} short trials", times=0))
