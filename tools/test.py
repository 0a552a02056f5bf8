"""``python tools/test.py ARGUMENTS``: pytest as ``make test`` runs it, with arguments of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_MEMORY, _ROOM = Path("/dev/shm"), 8 * 2**30  # noqa: S108 (a folder of its own is made there)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes(arguments: Sequence[str]) -> list[str]:
    """pytest-xdist's arguments: a process for each core, up to four; none where they are given."""
    n = min(4, usable_cores())
    given = any(argument.startswith(("-n", "--numprocesses", "--pdb")) for argument in arguments)
    return [] if given or n == 1 else ["-n", str(n)]


@contextmanager
def temporary_in_memory() -> Iterator[None]:
    """Temporary files in memory, where there is room and TMPDIR is not set: tests commit thousands of times."""
    room = shutil.disk_usage(_MEMORY).free if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else 0
    if "TMPDIR" in os.environ or room < _ROOM:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="harness-tests-", dir=_MEMORY, ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            del os.environ["TMPDIR"]


def main(arguments: Sequence[str]) -> int:
    slowest = ("--durations=30", "--durations-min=5")
    with temporary_in_memory():
        command = [sys.executable, "-m", "pytest", *slowest, *processes(arguments), *arguments]
        return subprocess.run(command, cwd=Path(__file__).resolve().parents[1], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
