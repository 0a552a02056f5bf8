"""Workers as Ray tasks: a real cluster on this machine, real trainings, and a node that is killed."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import select
import signal
import socket
import sys
from pathlib import Path

import pytest

from harness.cli.live import SweepView
from harness.data.store import open_store
from harness.errors import SweepError, UsageError, WeightsError
from harness.home import Home
from harness.machine.processes import Machines
from harness.spec.files import parse_study
from harness.store.database import write_study_attrs
from harness.store.records import StudyAttrs, TrialRecord
from harness.store.studies import open_study, study_to_record
from harness.store.trials import Trials, finished_count
from harness.sweep.engines.ray import _Driver, run_ray
from harness.sweep.messages import Ended, Event, Progressed, Ready, Scored, Started, Watcher, WorkerJob
from harness.tracking.client import client_for
from harness.tracking.mlflow import MlflowTracker, open_experiment
from harness.training.run_folder import RunInfo
from tests.conftest import TINY_STUDY, blob_files, sharing_weights
from tests.runs import reconcile

# Without Inception a worker is ready seconds earlier.
QUICK = TINY_STUDY.replace("[scoring.final]", '[scoring.final]\nextractor = "mobilenet-v2"')
# Long enough that whatever is done to a trial at its first progress or at its rung comes before its end.
LONG = QUICK.replace("kimg = 0.4", "kimg = 12").replace("rungs = [0.1]", "rungs = [2]")


class Sweep:
    """A study ready to run, and what the driver of its workers is told."""

    def __init__(self, home: Home, images: Path, name: str, *, target: int, text: str = QUICK):
        spec = parse_study(name, text, shown_as=f"{name}.toml")
        store = open_store(home, spec.data, images, study=name, on_progress=lambda *_: None, say=lambda _: None)
        self.home, self.study = home, open_study(spec, home)
        client = client_for(home)
        experiment = open_experiment(client, home, name, "")
        parent = MlflowTracker(client, experiment).start(RunInfo(key=f"{name}/sweep", name=name, experiment=name))
        self.tracker = MlflowTracker(client, experiment, parent)
        write_study_attrs(self.study, StudyAttrs(target=target, mlflow_experiment=experiment, mlflow_parent=parent))
        self.trials_of = Trials(self.study, spec, home)
        self.job = WorkerJob(
            spec=spec, home=home, store=store, device="cpu", threads=1, cores=2, tags={},
        )  # fmt: skip
        self.events: list[Event] = []
        self.level = self.deaths = 0

    def run(self, address: str | None, workers: int, react=lambda event: None) -> None:
        def on_event(event: Event) -> None:
            self.events.append(event)
            react(event)

        def on_death() -> None:
            self.deaths += 1
            self.reconcile()

        machines = Machines(workers=workers, engine="ray", address=address, gpus_per_worker=0.5)
        run_ray(self.job, machines, Watcher(on_event=on_event, stop_level=lambda: self.level), on_death)

    def reconcile(self, *, crashed: bool = True) -> None:
        reconcile(self.trials_of, self.tracker, self.home, crashed=crashed)

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        return study_to_record(self.study).trials

    @property
    def doings(self) -> str:
        view = SweepView(self.job.spec)
        return "\n".join(line for event in self.events if (line := view.update(event)))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, weights_home):
    """Makes sweeps that share images and reference statistics."""

    folder = tmp_path_factory.mktemp("ray")
    images = blob_files(folder / "images", 32)
    home = sharing_weights(folder, weights_home)
    return lambda name, **options: Sweep(home, images, name, **options)


@pytest.fixture(scope="module")
def cluster():
    """A head where nothing but the driver runs, and two nodes with one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def adopting():
    """Orphans become children of this process, so that it can wait until one is gone, and not only dead."""
    prctl, set_child_subreaper = ctypes.CDLL(None).prctl, 36
    assert prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    yield
    prctl(set_child_subreaper, 0, 0, 0, 0)


def test_a_sweep_runs_on_all_nodes_to_its_target(cluster, sweep, capfd):
    tiny = sweep("spread", target=2)
    tiny.run(cluster.address, 2)
    assert [trial.state for trial in tiny.trials] == ["COMPLETE"] * 2
    ready = {event.node for event in tiny.events if isinstance(event, Ready)}
    assert ready == {node.node_id for node in cluster.worker_nodes}
    for kind in (Started, Ended):
        assert sorted(event.number for event in tiny.events if isinstance(event, kind)) == [0, 1]
    assert any(isinstance(event, Progressed) for event in tiny.events)
    assert tiny.deaths == 0
    assert "".join(capfd.readouterr()) == ""


def test_a_lost_node_is_survived(cluster, sweep, adopting, capfd):
    tiny = sweep("lost", target=1, text=LONG)
    lost = []

    def lose_node(event: Event) -> None:
        if isinstance(event, Scored) and not lost:
            (node,) = [node for node in cluster.worker_nodes if node.node_id == event.node]
            lost.append(node.node_id)
            # A machine takes its processes along; here they would outlive it for a moment.
            worker = tiny.trials[0].attrs.worker["pid"]
            os.kill(worker, signal.SIGSTOP)
            cluster.remove_node(node, allow_graceful=False)
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)

    tiny.run(cluster.address, 1, lose_node)
    ends = [(trial.state, trial.reason) for trial in tiny.trials]
    assert ends == [("FAIL", "its worker was killed"), ("COMPLETE", "")]
    assert tiny.trials[1].attrs.retry_of == 0
    assert tiny.deaths == 1
    (start,) = [event for event in tiny.events if isinstance(event, Started) and event.number == 1]
    assert start.node not in lost
    assert start.kimg >= 2, "it continues from the checkpoint of the rung"
    assert "was lost; Ray starts another" in tiny.doings
    assert "".join(capfd.readouterr()) == "", "Ray says nothing over the sweep's table"


@pytest.mark.parametrize("level", [1, 2])
def test_a_stopped_sweep_ends_and_its_trial_is_queued(cluster, sweep, level):
    """One worker runs, on the one CPU that is left; the other waits, and need not begin."""
    tiny = sweep(f"stop{level}", target=2, text=LONG)

    running = []

    def stop(event: Event) -> None:
        if isinstance(event, Progressed) and not tiny.level:
            running.append(os.pidfd_open(tiny.trials[0].attrs.worker["pid"]))
            tiny.level = level

    tiny.run(cluster.address, 2, stop)
    select.select(running, [], [])
    os.close(running.pop())
    if level == 2:
        tiny.reconcile(crashed=False)
    first, queued = tiny.trials
    assert first.state == "FAIL"
    assert first.reason.startswith("interrupted: stopped at" if level == 1 else "interrupted: its worker was killed")
    assert (queued.state, queued.attrs.retry_of) == ("WAITING", 0)
    assert finished_count(tiny.study) == tiny.deaths == 0
    assert sum(isinstance(event, Ready) for event in tiny.events) == 1


def test_a_worker_that_loses_the_driver_leaves_its_trial_to_be_continued(cluster, sweep, monkeypatch):
    tiny = sweep("board", target=1, text=LONG)
    drivers: list[_Driver] = []
    follow = _Driver._follow
    monkeypatch.setattr(_Driver, "_follow", lambda self: (drivers.append(self), follow(self)))
    # Ray kills tasks whose driver is gone, but not at once.
    monkeypatch.setattr(_Driver, "_cancel", lambda self, refs: self.ray.wait(refs, num_returns=len(refs)))

    def lose_board(event: Event) -> None:
        if isinstance(event, Progressed):
            drivers[0].ray.kill(drivers[0].board)

    with pytest.raises(SweepError, match="Ray failed: ActorDiedError"):
        tiny.run(cluster.address, 1, lose_board)
    first, queued = tiny.trials
    assert first.reason.startswith("interrupted: stopped at")
    assert (queued.state, queued.attrs.retry_of) == ("WAITING", 0)


def test_a_worker_that_always_dies_ends_the_sweep(cluster, sweep, monkeypatch):
    monkeypatch.setattr("harness.sweep.engines.ray._MAX_LOSSES", 0)
    tiny = sweep("dies", target=1)
    store = dataclasses.replace(tiny.job.store, path=tiny.home.root / "not-on-this-node")
    tiny.job = dataclasses.replace(tiny.job, store=store)
    with pytest.raises(SweepError, match=r"a worker was lost, 1 in a row .* the last on \S+: FileNotFoundError"):
        tiny.run(cluster.address, 1)
    assert "a worker failed: FileNotFoundError" in tiny.doings
    assert "not-on-this-node" in tiny.doings


def test_a_workers_error_reaches_the_driver_as_it_is(sweep, monkeypatch, tmp_path):
    """On a Ray of its own, which ends with the sweep; the worker sees the environment of the driver."""
    import ray

    weights = tmp_path / "nowhere.pth"
    monkeypatch.setenv("HARNESS_FID_WEIGHTS", str(weights))
    tiny = sweep("error", target=1, text=TINY_STUDY)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(WeightsError) as caught:
        tiny.run(None, 1)
    assert caught.value.problem == f"HARNESS_FID_WEIGHTS names {weights}, which does not exist"
    assert caught.value.__cause__ is None
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def refused(sweep):
    """The error of a sweep that cannot begin."""

    def run(address: str) -> UsageError:
        with pytest.raises(UsageError) as caught:
            sweep("refused", target=1).run(address, 1)
        return caught.value

    return run


def test_without_ray_the_error_says_how_to_get_it(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    error = refused("auto")
    assert "needs the package ray" in error.problem
    assert error.hint == "In a clone `.venv/bin/pip install -c constraints.txt -e '.[ray]'`, else `pip install 'ray'`."


@pytest.mark.parametrize("address", ["joe:s3cret@127.0.0.1:6379", ":s3cret@host:1", "ray://joe:s3cret@host:1"])
def test_an_address_with_a_password_is_refused_and_not_shown(refused, address):
    assert str(refused(address)) == "the address of Ray has an @\nUse auto, local or HOST:PORT."


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "auto", "ray://127.0.0.1:{port}", "nonsense"])
def test_an_address_without_a_cluster_is_refused_at_once(refused, monkeypatch, capfd, address):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    address = address.format(port=port)
    error = refused(address)
    assert f"no Ray at address {address}: " in error.problem
    assert "ray status" in error.hint
    assert "".join(capfd.readouterr()) == ""
