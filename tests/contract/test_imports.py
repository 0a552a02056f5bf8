"""What lies in the current folder is executed by no process of ours; functions of a person's own are found there."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event

import pytest
import torch

from harness.errors import SweepError
from harness.machine.provenance import code_sha256
from harness.sweep import lanes, messages, worker
from harness.sweep.engines import local
from harness.sweep.messages import Progressed, Ready, Watcher
from tests.conftest import ROOT, TINY_STUDY, blob_files
from tests.servers import answers, free_port

# Our own package, libraries, and modules of the standard library that multiprocessing, Ray and MLflow import early.
SHADOWS = (
    *("harness/__init__", "optuna", "numpy", "psutil", "PIL", "mlflow", "uvicorn", "pip", "torch", "filelock"),
    *("json", "socket", "selectors", "random", "queue", "tempfile", "logging", "pickle", "uuid", "ssl"),
)
# Modules that a process imports before its first line: a script beside them runs without.
STARTING = ("sitecustomize", "usercustomize", "types", "operator", "keyword", "_distutils_hack")
FORK = "from harness.machine.forks import call_in_fork as call; from harness.machine.provenance import code_sha256\n"
RAY = """
import os
from pathlib import Path
from harness.machine.forks import starting_path
from harness.machine.imports import function_sha256
from harness.sweep.engines.ray import Board, _connect, _import_ray
ray = _import_ray()
_connect(ray, "local", 2)
ray.get(ray.remote(Board).options(runtime_env={"env_vars": starting_path()}).remote().stop.remote())
assert Path("mine.py").is_file(), "the driver stays where it was"
ray.shutdown()
"""
# As in `python script.py`, whose folder Python puts first when it has imported some modules and the site's.
SCRIPT = """
import os, sys
sys.path.insert(0, os.path.abspath("script"))
"""
PROCESSES = {
    "fork server": ("-c", FORK + "print(call(code_sha256) == code_sha256())"),
    "its functions of the current folder": (
        "-c",
        "from harness.machine.forks import call_in_fork; from harness.machine.imports import function_sha256\n"
        "print(len(call_in_fork(function_sha256, 'mine:function')) == 64)",
    ),
    "spawned": (
        "-c",
        "from harness.machine.forks import SpawningContext as S; from harness.machine.provenance import code_sha256\n"
        "process = S().Process(target=code_sha256); process.start(); process.join(); print(process.exitcode == 0)",
    ),
    "fork server of a script": ("-c", SCRIPT + FORK + "print(call(code_sha256) == code_sha256())"),
    "its functions of the script's folder": (
        "-c",
        SCRIPT + "from harness.machine.forks import call_in_fork; from harness.machine.imports import function_sha256\n"
        "print(len(call_in_fork(function_sha256, 'beside:function')) == 64)",
    ),
    "spawned by a script": (
        "-c",
        SCRIPT + FORK + "from harness.machine.forks import SpawningContext as S\n"
        "process = S().Process(target=code_sha256); process.start(); process.join(); print(process.exitcode == 0)",
    ),
    "decoding pool of python -m": ("-m", "harness", "data", "prepare", "tiny", "--data", "photos"),
    "ray": ("-c", RAY + "print(True)"),
    "ray of a script": ("-c", SCRIPT + RAY + "print(True)"),
}


@pytest.fixture
def shadowed(tmp_path: Path) -> Path:
    """A folder with modules that leave a mark where they are executed, a study, images and a module of one's own."""
    for name in SHADOWS:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"open({str(tmp_path / 'mark')!r}, 'a').write('{name} ')\nraise ImportError('{name} is shadowed')"
        )
    (tmp_path / "script").mkdir()
    for name in STARTING:
        shutil.copy(tmp_path / "json.py", tmp_path / "script" / f"{name}.py")
    (tmp_path / "script" / "beside.py").write_text("def function(): pass\n")
    (tmp_path / "mine.py").write_text("def function(): pass\n")
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "tiny.toml").write_text(TINY_STUDY)
    blob_files(tmp_path / "photos", 32)
    return tmp_path


@pytest.mark.parametrize("process", PROCESSES)
def test_no_process_executes_what_lies_in_the_current_folder(process, shadowed):
    if process.startswith("ray"):
        pytest.importorskip("ray")
    if PROCESSES[process][0] == "-m":
        shutil.rmtree(shadowed / "harness")  # the package that Python is asked for
        shutil.copy(shadowed / "json.py", shadowed / "typing.py")
        flags = []
    else:  # as the command `harness` is started: the current folder is not on the path
        flags = ["-P"]
    done = subprocess.run(
        [sys.executable, *flags, *PROCESSES[process]], cwd=shadowed, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not (shadowed / "mark").exists(), (shadowed / "mark").read_text()
    assert done.returncode == 0, done.stderr
    assert "True" in done.stdout or "fingerprint" in done.stdout, done.stdout


@pytest.mark.parametrize("here", [False, True], ids=["elsewhere", "home and path from here"])
def test_the_server_of_mlflow_executes_nothing_of_the_current_folder(shadowed, home, here):
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HARNESS_HOME": str(home.root)}
    if here:
        environment |= {"PYTHONPATH": os.path.relpath(ROOT, shadowed), "HARNESS_HOME": "."}
    command = [sys.executable, "-P", "-m", "harness", "ui", "--port", str(port)]
    server = subprocess.Popen(command, cwd=shadowed, env=environment, start_new_session=True)
    try:
        while not answers(port):
            assert server.poll() is None
            Event().wait(0.1)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert not (shadowed / "mark").exists(), (shadowed / "mark").read_text()


def test_the_hash_of_the_code_is_of_every_file(tmp_path):
    copy = tmp_path / "harness"
    shutil.copytree(ROOT / "harness", copy, ignore=shutil.ignore_patterns("__pycache__", "search_spaces"))
    command = [sys.executable, "-Pc", "from harness.machine.provenance import code_sha256; print(code_sha256())"]

    def hash_of_copy() -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert hash_of_copy() == code_sha256()
    (copy / "gan" / "more.py").touch()
    assert hash_of_copy() != code_sha256()


def test_a_worker_of_other_code_refuses_its_job():
    class OtherCode:
        code = "0" * 64

    with pytest.raises(SweepError, match="a worker has another version of the harness, in "):
        worker.run_worker(OtherCode(), lambda event: None, lambda: False)


@dataclasses.dataclass(frozen=True)
class Job:
    folder: Path
    index: int = 0
    workers: int = 1
    gpus: tuple[str, ...] = ()
    device: str = "cpu"


def hang_once(job: Job, events: Connection, environment: dict[str, str]) -> None:
    """A worker that is ready, and hangs where it is the first."""
    events.send(Ready())
    if not (job.folder / "hung").exists():
        (job.folder / "hung").touch()
        Event().wait()


def hang_once_in_one_lane(job: Job, events: Connection, environment: dict[str, str]) -> None:
    """A worker of two lanes; where it is the first, one of them hangs and the other reports what it does."""
    local._SIGN_S = lanes._LOOK_S = 0.02
    hangs = not (job.folder / "hung").exists()
    (job.folder / "hung").touch()

    def run_worker(job: Job, publish: Callable[[messages.Event], None], should_stop: Callable[[], bool]) -> None:
        both = lanes.Lanes(2, should_stop)

        def work() -> None:
            for _ in range(5_000):  # both at once
                both.stop()
            while hangs and not both.stop():
                publish(Progressed(number=0, kimg=0.0, images_per_s=1.0))
                Event().wait(None if threading.current_thread().name == "lane 1" else 0.02)

        publish(Ready())
        both.run(work, torch.device("cpu"), 1)

    worker.run_worker = run_worker
    local._worker_main(job, events, environment)


@pytest.mark.parametrize("hanging", [hang_once, hang_once_in_one_lane])
def test_a_worker_that_hangs_is_killed_and_another_continues(tmp_path, monkeypatch, hanging):
    monkeypatch.setattr(local, "_worker_main", hanging)
    monkeypatch.setattr(local, "_SILENCE_S", 0.5)
    said: list[str] = []
    deaths: list[int] = []
    watcher = Watcher(on_event=lambda event: said.append(getattr(event, "text", "")), stop_level=lambda: 0)
    local.LocalEngine(Job(tmp_path), watcher, lambda: deaths.append(1)).run()
    assert [line.partition(" for ")[0] for line in said if line] == [
        "a worker has shown no progress", "a worker died (exit code -9); starting another"
    ]  # fmt: skip
    assert deaths == [1]


def test_a_worker_is_not_taken_to_hang_while_it_loads_or_does_what_it_did_before():
    silent = local._Worker.__new__(local._Worker)
    now = time.monotonic()
    for heard_at, longest_s, hangs in [
        (0.0, 0.0, False), (now - 299, 0.0, False), (now - 301, 0.0, True), (now - 301, 31.0, False),
        (now - 400, 31.0, True),
    ]:  # fmt: skip
        silent.heard_at, silent.longest_s = heard_at, longest_s
        assert bool(silent.silence_s()) == hangs
