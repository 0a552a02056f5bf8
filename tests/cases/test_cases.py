"""Situations that people ran into, each a script that anybody can run: ``HARNESS=.venv/bin/harness bash NAME.sh``.

A script's first comment line may say ``# needs:`` and some of ``root``, ``mount``, ``network``, ``make`` and ``long``:
where it cannot run, it is skipped with that reason.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.options import LONG

HERE = Path(__file__).parent


def needs(script: Path) -> set[str]:
    first = next(line for line in script.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return set(first.removeprefix("# needs:").replace(",", " ").split()) if first.startswith("# needs:") else set()


def missing(need: str) -> str:
    """Why a script with this need cannot run here, or an empty string."""
    is_root = os.geteuid() == 0
    return {
        "root": "" if is_root else "needs root",
        "mount": "" if is_root and _can_mount() else "needs root and a mount namespace of its own",
        "network": "" if os.environ.get("HARNESS_TEST_NETWORK") else "needs a network: set HARNESS_TEST_NETWORK",
        "make": ""
        if (ROOT / ".venv/bin/harness").exists() and shutil.which("make")
        else "needs make and this clone's .venv",
        "long": "" if LONG else "runs with `make faults`",
    }[need]


def _can_mount() -> bool:
    return (
        bool(shutil.which("unshare")) and not subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    )


@pytest.fixture(scope="session")
def command(tmp_path_factory) -> Path:
    """The command of this tree, started as an installed one, and a python that has this tree's modules."""
    folder = tmp_path_factory.mktemp("case") / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(
        'import sys\nfrom harness.cli import main\nif __name__ == "__main__":\n    sys.exit(main())\n'
    )
    python = f"PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)}"
    for name, line in {
        "python": f'{python} "$@"',
        "harness": f'{python} {shlex.quote(str(folder / "main.py"))} "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder / "harness"


@pytest.mark.parametrize("script", sorted(HERE.glob("*.sh")), ids=lambda path: path.stem)
def test_case(script, command, weights_home, tmp_path):
    wanted = needs(script)
    if reasons := [reason for need in sorted(wanted) if (reason := missing(need))]:
        pytest.skip("; ".join(reasons))
    harness = ROOT / ".venv/bin/harness" if "make" in wanted else command
    env = os.environ | {
        "HARNESS": str(harness),
        "HARNESS_TEST_HOME": str(weights_home.root.resolve()),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(["bash", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
