"""What make does before it installs into .venv, by the real pip, from folders of tiny wheels."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.conftest import ROOT
from tools import bootstrap

PIP = [sys.executable, "-I", "-m", "pip"]
TORCH, TORCHVISION = re.findall(r"^(?:torch|torchvision)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all wheels of torch are for CPUs")
# The harness itself, built by its own folder, so that the folder of wheels needs no setuptools.
BACKEND = """
import shutil
def build_editable(folder, *_):
    return shutil.copy("harness_of_the_test-1-py3-none-any.whl", folder).rpartition("/")[2]
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def write_wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        needs = "".join(f"Requires-Dist: {other}\n" for other in requires)
        texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        for file, text in texts.items():
            archive.writestr(f"{name}-{version}.dist-info/{file}", text)


@pytest.fixture
def wheels(tmp_path, monkeypatch) -> Path:
    """A folder of wheels that is all that pip knows of; no GPU."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder, "six", "1.17.0")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("DEVICE", raising=False)
    monkeypatch.setattr(bootstrap, "_NVIDIA_DRIVER", tmp_path / "no_driver")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    nvidia_smi(tmp_path, "exit 9")
    return folder


def nvidia_smi(folder: Path, script: str) -> None:
    """A stand-in for nvidia-smi."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


@pytest.fixture
def root(wheels, tmp_path, monkeypatch) -> Path:
    """A fresh clone of a project that needs torch and torchvision alone."""
    root = tmp_path / "clone"
    root.mkdir()
    (root / "constraints.txt").write_text(f"torch=={TORCH}\ntorchvision=={TORCHVISION}\n")
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "backend.py").write_text(BACKEND)
    write_wheel(root, "harness_of_the_test", "1", "torch>=2", "torchvision")
    monkeypatch.setattr(bootstrap, "ROOT", root)
    monkeypatch.setattr(bootstrap, "VENV", root / ".venv")
    return root


def add_torch(folder: Path, *builds: str) -> None:
    for build in builds:
        write_wheel(folder, "torch", f"{TORCH}{build}")
        write_wheel(folder, "torchvision", f"{TORCHVISION}{build}", f"torch=={TORCH}")


def installed(root: Path) -> tuple[str, ...]:
    """The versions of torch and torchvision in its .venv."""
    site = next((root / ".venv" / "lib").glob("python*/site-packages"))
    found = [next(site.glob(f"{name}-*.dist-info")).name for name in ("torch", "torchvision")]
    return tuple(name.partition("-")[2].removesuffix(".dist-info") for name in found)


@linux
def test_torch_for_cpus_is_taken_without_a_gpu_and_needs_less_disk(root, wheels, monkeypatch, capfd):
    monkeypatch.setattr(bootstrap, "_SIZE_GB", shutil.disk_usage(ROOT).total / 1e9 + 1)
    add_torch(wheels, "", "+cu130")
    assert [line.partition(" GB")[0] for line in refusal(capfd)] == [f"installing takes about {bootstrap._SIZE_GB}"]
    add_torch(wheels, "+cpu")
    bootstrap.ensure("")
    assert "the CPU build of torch, as there is no NVIDIA GPU here" in capfd.readouterr().err
    assert installed(root) == (f"{TORCH}+cpu", f"{TORCHVISION}+cpu")
    assert bootstrap._is_fresh("") and not (root / ".venv" / ".asked").exists()


@linux
def test_torch_is_left_to_pip_where_the_index_has_no_cpu_build_and_stays_when_it_gets_one(root, wheels, capfd):
    add_torch(wheels, "")
    bootstrap.ensure("")
    assert (
        f"the CUDA build of torch, several GB, as the index has no CPU build of torch {TORCH};"
        in capfd.readouterr().err
    )
    add_torch(wheels, "+cpu")
    with (root / "constraints.txt").open("a") as pins:
        pins.write("six==1.17.0\n")
    bootstrap.ensure("")
    assert "build" not in capfd.readouterr().err
    assert installed(root) == (TORCH, TORCHVISION) and bootstrap._is_fresh("")


@linux
@pytest.mark.parametrize(("device", "listed"), [("", "echo GPU 0"), ("cuda", "exit 9")])
def test_torch_is_left_to_pip_with_a_gpu_or_when_one_is_asked_for(root, wheels, monkeypatch, device, listed):
    add_torch(wheels, "", "+cpu")
    assert bootstrap._torch(PIP, bootstrap._pip_environment(PIP))[0]
    nvidia_smi(wheels.parent, listed)
    monkeypatch.setenv("DEVICE", device)
    told = ([], "torch with CUDA libraries is several GB; ")
    assert bootstrap._torch(PIP, bootstrap._pip_environment(PIP)) == told


@linux
def test_half_a_pair_of_cpu_builds_is_not_taken(root, wheels):
    write_wheel(wheels, "torch", f"{TORCH}+cpu")
    write_wheel(wheels, "torchvision", TORCHVISION)
    builds, note = bootstrap._torch(PIP, bootstrap._pip_environment(PIP))
    assert builds == [] and f"no CPU build of torchvision {TORCHVISION}" in note


def refusal(capfd) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        bootstrap.ensure("")
    assert ended.value.code == 1
    assert not bootstrap.VENV.exists()
    lines = capfd.readouterr().err.splitlines()
    assert not [line for line in lines if not line.startswith(("error: ", "creating .venv"))]
    return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]


def test_all_that_is_missing_is_named_at_once_before_anything_is_installed(root, wheels, monkeypatch, capfd):
    shutil.rmtree(wheels)
    monkeypatch.setattr(bootstrap, "_SIZE_GB", shutil.disk_usage(ROOT).total / 1e9 + 1)
    monkeypatch.setattr(bootstrap, "_CPU_SIZE_GB", bootstrap._SIZE_GB)
    with monkeypatch.context() as old_python:
        old_python.setattr(sys, "version_info", (3, 9, 2))
        old_python.setitem(sys.modules, "venv", None)
        python, environment, index, disk = refusal(capfd)
    assert python.startswith("Python 3.11 or newer is needed") and "make PYTHON=" in python
    assert "apt install python3-venv" in environment
    assert index.startswith("pip gets nothing from the package index: it does not offer the package six. Check ")
    assert disk.startswith("installing takes about ") and "GB are free in" in disk


def test_a_python_without_pip_is_named_and_leaves_nothing_that_is_taken_for_an_environment(root, monkeypatch, capfd):
    def create(where, **_):
        (where / "lib").mkdir()
        raise subprocess.CalledProcessError(1, ["python", "-m", "ensurepip"])

    monkeypatch.setattr(venv, "create", create)
    (root / ".venv" / "bin").mkdir(parents=True)  # by one that was killed before it had pip
    (root / ".venv" / "bin" / "python").touch()
    assert refusal(capfd) == ["this Python has no venv or no ensurepip. On Debian and Ubuntu: apt install python3-venv"]


class Answer(BaseHTTPRequestHandler):
    """Answers with the status that the path begins with."""

    def do_GET(self):
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("WWW-Authenticate", "Basic realm=packages")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as served:
        Thread(target=served.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{served.server_port}"
        served.shutdown()


def index_problem(monkeypatch, address: str) -> str:
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", address)
    return bootstrap._index_problem(PIP, bootstrap._pip_environment(PIP))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("403/simple", "403 Client Error: Forbidden"),
        ("404/simple", "404 Client Error: Not Found"),
        ("503/simple", "too many 503 error responses"),
        ("401/simple", "it asks for a password"),
    ],
)
def test_why_the_index_gives_nothing_is_said_in_one_sentence(root, monkeypatch, path, reason):
    with server() as host:
        said = index_problem(monkeypatch, f"http://{host}/{path}")
    assert said.startswith(f"pip gets nothing from the package index: {reason}. Check the network")
    assert "\n" not in said and host not in said


def test_a_refused_password_is_not_shown(root, monkeypatch):
    with server() as host:
        said = index_problem(monkeypatch, f"http://me:s3cret@{host}/401/simple")
    assert "401 Client Error: Unauthorized" in said and "s3cret" not in said


def test_an_index_that_asks_for_a_password_is_left_to_pip_where_a_person_can_answer(root, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with server() as host:
        assert index_problem(monkeypatch, f"http://{host}/401/simple") == ""


def test_an_index_that_is_away_is_told_from_one_that_never_answers(root, monkeypatch):
    monkeypatch.setenv("PIP_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        assert ": timed out. Check" in index_problem(monkeypatch, address)
    assert ": Connection refused. Check" in index_problem(monkeypatch, address)


def test_a_python_without_pip_cannot_ask_the_index(root):
    venv.create(root / ".venv", symlinks=True)
    said = bootstrap._index_problem([str(bootstrap.python_of(root / ".venv")), "-I", "-m", "pip"], {})
    assert said == "whether the package index answers is not known: this Python has no pip to ask it with"
