"""MPS as a sweep starts it, with a stand-in for NVIDIA's program that starts, asks and ends a daemon as that does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from harness.machine.forks import short_temporary_folder
from harness.machine.mps import process_service
from harness.spec.files import parse_study
from harness.sweep.engines import local
from harness.sweep.messages import Watcher, WorkerJob
from tests.conftest import TINY_STUDY

# With -d a daemon at a socket of CUDA_MPS_PIPE_DIRECTORY, unless one is there; else a command for that one from stdin.
STAND_IN = """\
#!{python} -SE
import os, socket, sys
folder = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
control = socket.socket(socket.AF_UNIX)
try:
    control.connect(folder + "/control")
    runs = True
except OSError:
    runs = False
if sys.argv[1:] == ["-d"]:
    if runs or "REFUSES" in os.environ:
        sys.exit("An instance of this daemon is already running" if runs else "MPS is not supported on this device")
    os.makedirs(folder, exist_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(folder + "/control")
    server.listen()
    if daemon := os.fork():
        with open(folder + "/daemon", "w") as file:
            file.write(str(daemon) + " " + os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        os._exit(0)
    os.setsid()
    while True:
        client, _ = server.accept()
        command = client.recv(100).decode().strip()
        if command == "quit":
            os.remove(folder + "/control")
            os._exit(0)
        client.sendall(b"\\n")
        client.close()
if not runs:
    sys.exit("Cannot find MPS control daemon process")
control.sendall(sys.stdin.buffer.read())
control.recv(100)
"""


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stand-in, found first on PATH; no daemon runs. The path of its socket's folder is short enough for one."""
    path = tmp_path / "nvidia-cuda-mps-control"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with short_temporary_folder(), tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", folder)
        yield path


def answers(control: Path) -> bool:
    return subprocess.run([control], input=b"get_server_list\n", capture_output=True, check=False).returncode == 0


def daemon_of(folder: str) -> tuple[psutil.Process, str]:
    """The daemon of this pipe folder, and the GPUs that it was started with."""
    pid, _, gpus = Path(folder, "daemon").read_text().partition(" ")
    return psutil.Process(int(pid)), gpus


def usable() -> str:
    return ""


@pytest.mark.parametrize("fails", [False, True])
def test_a_daemon_of_the_sweeps_own_ends_with_it(control, fails):
    before, said = dict(os.environ), []
    ending = pytest.raises(RuntimeError) if fails else nullcontext()
    with ending, process_service(("2", "GPU-5"), said.append, usable) as gpus:
        assert gpus == ("0", "1"), "its clients count the GPUs that it was started with"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert answers(control)
        folder = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        daemon, its_gpus = daemon_of(folder)
        assert its_gpus == "2,GPU-5"
        if fails:
            raise RuntimeError("the sweep fails")
    daemon.wait(20)
    assert not Path(folder).parent.exists()
    assert dict(os.environ) == before
    assert said == ["workers share the GPU through MPS, which ends with the sweep"]


KILLED = """\
import os
from harness.machine.mps import process_service
with process_service(("0",), str, str):
    print(os.environ["CUDA_MPS_PIPE_DIRECTORY"], flush=True)
    input()
"""


def test_a_killed_sweep_leaves_no_daemon(control):
    sweep = subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = sweep.stdout.readline().strip()
    daemon, _ = daemon_of(folder)
    (guard,) = psutil.Process(sweep.pid).children()
    sweep.kill()
    sweep.communicate()
    daemon.wait(20)
    guard.wait(20)
    assert not Path(folder).parent.exists()


def test_somebody_elses_daemon_is_used_and_left_alone(control):
    subprocess.run([control, "-d"], check=True)
    daemon, _ = daemon_of(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
    before, said = dict(os.environ), []
    with process_service(("2",), said.append, usable) as gpus:
        assert gpus == ("2",)
        assert dict(os.environ) == before
    assert said == ["workers share the GPU through MPS, which runs here already"]
    assert answers(control)
    subprocess.run([control], input=b"quit\n", check=True)
    daemon.wait(20)


def test_where_there_is_no_mps_workers_take_turns(control, monkeypatch):
    control.unlink()
    said = []
    with process_service(("2",), said.append, usable) as gpus:
        assert gpus == ("2",)
    assert said == [
        "workers take turns on a GPU, which they could share through MPS, but nvidia-cuda-mps-control is not installed"
    ]


@pytest.mark.parametrize(
    ("refuses", "why_not", "reason"),
    [
        (True, "", "MPS is not supported on this device"),
        (False, "CUDA error: MPS client failed to connect\nCompile with", "CUDA error: MPS client failed to connect"),
    ],
    ids=["the daemon does not start", "the daemon does not serve"],
)
def test_where_the_driver_refuses_workers_take_turns(control, monkeypatch, refuses, why_not, reason):
    if refuses:
        monkeypatch.setenv("REFUSES", "1")
    before, said, ended = dict(os.environ), [], []

    def asked() -> str:
        ended.append(daemon_of(os.environ["CUDA_MPS_PIPE_DIRECTORY"])[0])
        return why_not

    with process_service(("2",), said.append, asked) as gpus:
        assert gpus == ("2",)
        assert dict(os.environ) == before
        for daemon in ended:
            daemon.wait(20)
    assert said == [f"workers take turns on a GPU, which they could share through MPS, but it does not start: {reason}"]


@pytest.mark.parametrize(("workers", "device", "shares"), [(2, "cuda", True), (1, "cuda", False), (2, "cpu", False)])
def test_workers_of_one_gpu_share_it(control, monkeypatch, workers, device, shares):
    """Here the new daemon's first client finds no GPU."""
    said: list[str] = []
    about = dict.fromkeys(("spec", "home", "store", "threads", "cores", "tags"))
    job = WorkerJob(**about, device=device, workers=workers, gpus=("0",))
    watcher = Watcher(on_event=lambda event: said.append(event.text), stop_level=lambda: 0)
    engine = local.LocalEngine(job, watcher, lambda: None)
    monkeypatch.setattr(engine, "_supervise", lambda: said.append("supervised"))
    engine.run()
    assert said[-1] == "supervised"
    assert [text.startswith("workers take turns on a GPU") for text in said[:-1]] == [True] * shares


def test_a_network_without_a_graph_has_more_workers_where_there_is_mps(control, monkeypatch):
    study = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml").model_copy(update={"network": "own:networks"})
    monkeypatch.setattr(local, "call_with_torch", lambda function: ("0", "1"))
    monkeypatch.setattr(local, "free_memory", lambda: 100 * 2**30)
    reasons = ["", "it reads a value back", "it reads a value back"]
    monkeypatch.setattr(local, "call_in_fork", lambda *arguments: reasons.pop(0))
    assert local.workers_for(study, 400, "cuda") == (2, "one for each GPU")
    why = "8 for each GPU, for own:networks has no CUDA graph (it reads a value back)"
    assert local.workers_for(study, 400, "cuda") == (16, why)
    assert local.workers_for(study, 20, "cuda") == (5, "few trials")
    control.unlink()
    assert local.workers_for(study, 400, "cuda") == (2, "one for each GPU")


def test_why_there_is_no_graph_is_asked_of_a_typical_training(monkeypatch):
    study = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")
    assert local._without_graph(study, "cpu") == "it is not on CUDA"
    monkeypatch.setenv("HARNESS_CUDA_GRAPHS", "0")
    assert local._without_graph(study, "cpu") == "HARNESS_CUDA_GRAPHS=0"
