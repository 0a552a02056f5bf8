"""The MLflow server goes away under a sweep: no trial is failed or held up, and everything arrives, once."""

from __future__ import annotations

from tests.e2e.test_sweep import finish
from tests.faults.barrier import Barrier
from tests.faults.checks import Fault, check_all, outcome
from tests.faults.conftest import STEP, TELL, Watch, with_barrier
from tests.servers import Gateway, MlflowServer


def test_a_server_that_fails_in_every_way(bench, undisturbed, tmp_path, monkeypatch):
    """Answering 500, answering late, losing answers, killed for a whole trial and started again."""
    server = MlflowServer(tmp_path / "mlflow").start()
    gateway = Gateway(server.port)
    project = bench.project(
        MLFLOW_TRACKING_URI=gateway.url, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT="5"
    )
    barrier = Barrier(step=STEP, tell=TELL)
    process = project.start("sweep", **with_barrier(project, barrier))
    watch = Watch()
    for mode in ("500", "slow", "lost", "down"):
        arrival = barrier.wait("step", nth=12)
        if mode == "down":
            server.kill()
        else:
            gateway.seen.clear()
            gateway.release.clear()
            gateway.mode = mode
        arrival.release()
        # A whole trial's end comes and goes meanwhile.
        barrier.wait("tell").release()
        gateway.mode = "pass"
        gateway.release.set()
        if mode == "down":
            server.start()
    barrier.pass_on()
    watch.start()
    output = finish(process)
    watch.stop()
    # What the last trial had left, where the server was back too late for its worker.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gateway.url)
    project.run("reconcile")
    fault = Fault(
        name="MLflow server answering 500, late, losing answers, killed; each while one trial ends",
        times=4, recovery_s=watch.seconds,
    )  # fmt: skip
    try:
        record = check_all(project.home, "tiny", 4, fault)
    finally:
        gateway.close()
        server.kill()
    assert outcome(project.home, record) == undisturbed, output
    assert [trial.state for trial in record.trials].count("FAIL") == 0
