"""What lies in the current folder is executed by no process of ours; functions of a person's own are found there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from harness.errors import SweepError
from harness.machine.provenance import code_sha256
from harness.sweep import worker
from tests.conftest import ROOT, TINY_STUDY, blob_files
from tests.servers import _answers as answers
from tests.servers import free_port

# Our own package, libraries, and modules of the standard library that multiprocessing, Ray and MLflow import early.
SHADOWS = (
    *("harness/__init__", "optuna", "numpy", "psutil", "PIL", "mlflow", "uvicorn", "pip", "torch", "filelock"),
    *("json", "socket", "selectors", "random", "queue", "tempfile", "logging", "pickle", "uuid", "ssl"),
)
FORK = "from harness.machine.forks import call_in_fork as call; from harness.machine.provenance import code_sha256\n"
RAY = """
import os
from pathlib import Path
from harness.machine.forks import search_path
from harness.machine.imports import function_sha256
from harness.sweep.engines.ray import Board, _connect, _import_ray
ray = _import_ray()
_connect(ray, "local", 2)
environment = {"env_vars": {"PYTHONPATH": search_path(), "PYTHONSAFEPATH": "1"}}
ray.get(ray.remote(Board).options(runtime_env=environment).remote().stop.remote())
assert Path("mine.py").is_file(), "the driver stays where it was"
ray.shutdown()
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
    "decoding pool of python -m": ("-m", "harness", "data", "prepare", "tiny", "--data", "photos"),
    "ray": ("-c", RAY + "print(True)"),
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
    (tmp_path / "mine.py").write_text("def function(): pass\n")
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "tiny.toml").write_text(TINY_STUDY)
    blob_files(tmp_path / "photos", 32)
    return tmp_path


@pytest.mark.parametrize("process", PROCESSES)
def test_no_process_executes_what_lies_in_the_current_folder(process, shadowed):
    if process == "ray":
        pytest.importorskip("ray")
    if PROCESSES[process][0] == "-m":
        shutil.rmtree(shadowed / "harness")  # the package that Python is asked for
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


def test_the_server_of_mlflow_executes_nothing_of_the_current_folder(shadowed, home):
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HARNESS_HOME": str(home.root)}
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
    class Job:
        code = "0" * 64

    with pytest.raises(SweepError, match="a worker has another version of the harness, in "):
        worker.run_worker(Job(), lambda event: None, lambda: False)
