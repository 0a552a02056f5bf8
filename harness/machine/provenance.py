"""Code, libraries and machine behind a result, as plain strings without secrets or user names."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness import __version__
from harness.machine.processes import usable_cores

_LIBRARIES = ("torch", "torchvision", "torch-fidelity", "optuna", "mlflow", "numpy")
_PACKAGE = Path(__file__).resolve().parents[1]


@cache
def code_sha256() -> str:
    """The identity of the code in use: a hash of the package's files at the first call."""
    total = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        total.update(f"{path.relative_to(_PACKAGE).as_posix()} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def git_commit() -> str:
    """The commit of the code in use, with ``-dirty`` if it was changed; ``unknown`` outside its own clone."""
    root = _PACKAGE.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        # In a hook of another repository, these variables name that one.
        env = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(
            command, env=env, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        # An installed package may lie inside another project's repository.
        if git("rev-parse", "--show-toplevel") != str(root) or not git("rev-parse", "HEAD:harness/__init__.py"):
            return "unknown"
        commit = git("rev-parse", "--short=12", "HEAD")
        # Reports are written by runs; they do not change what the code does.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "harness", "search_spaces")
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return f"{commit}{'-dirty' if changed else ''}" if commit else "unknown"


def cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def provenance(device_name: str) -> dict[str, str]:
    """Tags that every run of a sweep carries."""
    libraries = {"harness": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):  # mlflow may be installed as mlflow-skinny
            libraries[name] = version(name)
    return {
        "versions": ", ".join(f"{name} {number}" for name, number in libraries.items()),
        "git_commit": git_commit(),
        "device": device_name,
        "cpu": cpu_name(),
        "cores": str(usable_cores()),
    }
