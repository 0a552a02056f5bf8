"""From a fresh clone to an installed harness, with the standard library alone.

``python3 -m harness VERB`` creates ``.venv`` and installs into it where needed, then runs the verb there. The console
command ``harness`` does none of this: it runs in whatever environment it was installed into.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
# Verbs that need the development tools.
_DEV_VERBS = frozenset({"test", "lint", "bench", "faults"})


def stamp(extra: str) -> str:
    """What an environment was made from: it is refreshed where this changes."""
    total = hashlib.sha256(f"{sys.version_info[:2]} {extra}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        total.update((ROOT / name).read_bytes())
    return total.hexdigest()


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def ensure(verb: str) -> Path:
    """Create and fill ``.venv`` unless it is there and up to date; return its Python.

    Exits with a sentence where that fails.
    """
    extra = "dev" if verb in _DEV_VERBS else ""
    python = python_of(VENV)
    stamps = {name: VENV / f".stamp-{name or 'base'}" for name in ("", "dev")}

    def fresh(name: str) -> bool:
        return python.exists() and stamps[name].is_file() and stamps[name].read_text() == stamp(name)

    if fresh(extra) or (not extra and fresh("dev")):
        return python
    if sys.version_info < (3, 11):  # noqa: UP036 - the first to be run, by whatever Python make finds
        _fail(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 …", 2)
    if not python.exists() or not any(VENV.glob("lib/python*/site-packages/pip")):  # or it was killed in between
        sys.stderr.write("creating .venv\n")
        try:
            venv.create(VENV, with_pip=True, symlinks=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(VENV, ignore_errors=True)
            _fail("this Python has no ensurepip. On Debian and Ubuntu: apt install python3-venv", 1)
    sys.stderr.write("installing (torch with CUDA libraries is several GB; the first time takes minutes)\n")
    target = f"{ROOT}[{extra}]" if extra else str(ROOT)
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"]
    done = subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), "-e", target], check=False)
    if done.returncode:
        _fail("installing failed: see pip's message above. Is the package index reachable, and the disk not full?", 1)
    _compile(python)
    stamps[extra].write_text(stamp(extra))
    return python


def _compile(python: Path) -> None:
    """Byte code of the packages and of the harness, on all cores, where pip takes one; no package's own tests.

    What is left without is compiled when it is imported, so a file that does not compile is not an error here.
    """
    command = [str(python), "-m", "compileall", "-qq", "-j", "0", "-x", "site-packages/.*/tests?/"]
    subprocess.run([*command, str(VENV / "lib"), str(ROOT / "harness")], check=False)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(code)


def main() -> None:
    """Run the verb in ``.venv``, made ready first. ``HARNESS_NO_VENV`` set: run it here, as things are."""
    verb = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    if not verb or verb == "clean" or os.environ.get("HARNESS_NO_VENV"):
        _run_here()
        return
    python = ensure(verb)
    if Path(sys.prefix).resolve() == VENV.resolve():
        _run_here()
        return
    os.execv(python, [str(python), "-m", "harness", *sys.argv[1:]])


def _run_here() -> None:
    from harness.cli import main as cli_main

    raise SystemExit(cli_main())
