"""From a fresh clone to an installed harness, with the standard library alone.

``python3 tools/bootstrap.py VERB`` creates ``.venv`` and installs into it where needed, then runs the verb there.
``python3 tools/bootstrap.py --tools`` does so with the development tools, and prints the folder that they are in. The
console command ``harness`` does none of this: it runs in whatever environment it was installed into.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
# Variables that may be set on make's command line besides those that the Makefile hands on.
_OTHER_VARIABLES = (
    *("PYTHON", "MLFLOW_TRACKING_URI", "HARNESS_HOME", "HARNESS_STORAGE", "HARNESS_SEARCH_SPACES", "HARNESS_MACHINE"),
    *("HARNESS_CHECKPOINTS", "HARNESS_CHECKPOINT_S", "HARNESS_GRACE_S", "HARNESS_CUDA_GRAPHS", "HARNESS_NO_VENV"),
    *("HARNESS_FID_WEIGHTS", "HARNESS_VGG16_WEIGHTS"),
)
_WITHOUT_CLICK = """\
make sweep   installs into .venv and runs the default study: real MNIST digits, minutes on two cores
make setup   installs into .venv and fetches the scoring weights; `make` then lists all verbs
"""


def stamp(extra: str) -> str:
    """What an environment was made from: it is refreshed where this changes."""
    total = hashlib.sha256(f"{sys.version_info[:2]} {extra}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        total.update((ROOT / name).read_bytes())
    return total.hexdigest()


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def ensure(extra: str) -> Path:
    """Create and fill ``.venv`` unless it is there and up to date; return its Python.

    Exits with a sentence where that fails.

    Args:
        extra: the optional dependencies that are needed: ``dev`` or none.
    """
    python = python_of(VENV)
    stamps = {name: VENV / f".stamp-{name or 'base'}" for name in ("", "dev")}

    def fresh(name: str) -> bool:
        return python.exists() and stamps[name].is_file() and stamps[name].read_text(encoding="utf-8") == stamp(name)

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


def refuse_mistyped(flags: str, known: list[str]) -> None:
    """Stop where a variable on make's command line is nearly one that the harness has.

    Others are left alone: they may be some library's.

    Args:
        flags: MAKEFLAGS, as make gives it to its recipes: options, ``--``, then NAME=value with escaped spaces.
        known: the variables that there are.
    """
    for name in re.findall(r"(?:^|(?<!\\)\s)([A-Za-z_][A-Za-z0-9_]*)=", flags.partition("-- ")[2]):
        near = difflib.get_close_matches(name, known, n=1)
        if name not in known and near:
            _fail(f"no variable {name}; did you mean {near[0]}?", 2)


def refuse_verb(asked: list[str], known: list[str]) -> None:
    """Stop, naming the verb of make that is nearest to the first unknown one."""
    unknown = next((verb for verb in asked if verb not in known), "")
    near = difflib.get_close_matches(unknown, known, n=1)
    _fail(f"no verb {unknown}{f'; did you mean {near[0]}?' if near else ''}\n`make` lists all verbs.", 2)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(code)


def main() -> None:
    """Run the verb in ``.venv``, made ready first. ``HARNESS_NO_VENV`` set: run it with this Python, as things are."""
    refuse_mistyped(os.environ.get("MAKEFLAGS", ""), [*os.environ.get("VARIABLES", "").split(), *_OTHER_VARIABLES])
    words, here = sys.argv[1:], os.environ.get("HARNESS_NO_VENV")
    if words == ["--no-such-verb"]:
        refuse_verb(os.environ.get("GOALS", "").split(), os.environ.get("VERBS", "").split())
    if words == ["--tools"]:
        python = sys.executable if here else str(ensure("dev"))
        sys.stdout.write(f"{Path(python).parent}\n")
        return
    if words:
        python = sys.executable if here else str(ensure(""))
    elif importlib.util.find_spec("click"):  # the help needs no more
        python = sys.executable
    elif python_of(VENV).exists():
        python = str(python_of(VENV))
    else:
        sys.stdout.write(_WITHOUT_CLICK)
        return
    os.execv(python, [python, "-m", "harness", *words])


if __name__ == "__main__":
    main()
