"""From a fresh clone to an installed harness, with the standard library alone.

``python3 tools/bootstrap.py VERB`` creates ``.venv`` and installs into it where needed, then runs the verb there.
``python3 tools/bootstrap.py --tools`` does so with the development tools, and prints the folder that they are in. The
console command ``harness`` does none of this: it runs in whatever environment it was installed into.
"""

from __future__ import annotations

import ast
import difflib
import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
# A file in .venv while something is installed, and after an installation that was interrupted.
_UNFINISHED = ".unfinished"
# What an environment takes with torch's CUDA libraries (measured: 6.5), with torch for CPUs (the same without those
# libraries: 1.7), and what the development tools add (GB).
_SIZE_GB, _CPU_SIZE_GB, _DEV_GB = 7, 2, 1
_NVIDIA_DRIVER = Path("/proc/driver/nvidia")
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
    """What an environment was made from, and where: it is refreshed where this changes."""
    total = hashlib.sha256(f"{VENV} {python_of(VENV).resolve()} {extra}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        total.update((ROOT / name).read_bytes())
    return total.hexdigest()


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def ensure(extra: str) -> Path:
    """Create and fill ``.venv`` unless it is there and up to date; return its Python.

    Exits with a sentence for everything that is missing, before it installs. A ``.venv`` that is a link is its owner's,
    and used as it is.

    Args:
        extra: the optional dependencies that are needed: ``dev``, ``dashboard`` or none.
    """
    if VENV.is_symlink():
        if not python_of(VENV).exists():
            _fail(f"{VENV} is a link to {VENV.readlink()}, which is not an environment; remove the link", 1)
        return python_of(VENV)
    if not _is_fresh(extra):
        with _one_at_a_time():
            if not _is_fresh(extra):  # or another process has made it meanwhile
                _install(extra)
    return python_of(VENV)


def _is_fresh(extra: str) -> bool:
    def stamped(name: str) -> bool:
        path = VENV / f".stamp-{name or 'base'}"
        return path.is_file() and path.read_text(encoding="utf-8") == stamp(name)

    whole = python_of(VENV).exists() and (VENV / "pyvenv.cfg").is_file() and not (VENV / _UNFINISHED).exists()
    return whole and (stamped("dev") or stamped(extra))


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait for other processes that install into this clone; where files cannot be locked, do not."""
    with (ROOT / ".venv.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write("another process is installing into .venv; waiting for it\n")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def _install(extra: str) -> None:
    pip, environment, builds = _prepare(extra)
    (VENV / _UNFINISHED).touch()
    target = f"{ROOT}[{extra}]" if extra else str(ROOT)
    command = [
        *pip,
        "install",
        *(() if sys.stderr.isatty() else ("-q",)),  # who waits sees what is fetched
        "--disable-pip-version-check",
        "--no-compile",
        "-c",
        str(ROOT / "constraints.txt"),
        *builds,
    ]
    if subprocess.run([*command, "-e", target], env=environment, check=False).returncode:
        _fail("installing failed: see pip's message above. Is the package index reachable, and the disk not full?", 1)
    _compile(pip[0])
    (VENV / f".stamp-{extra or 'base'}").write_text(stamp(extra))
    (VENV / _UNFINISHED).unlink()


def _prepare(extra: str) -> tuple[list[str], dict[str, str], list[str]]:
    """Check Python, venv, index and disk, and make an empty ``.venv`` where there is no usable one.

    Exits with a sentence for each that is not as it must be.

    Returns:
        pip's command, its environment, and the builds of torch that it is to take.
    """
    problems, python = [], str(python_of(VENV))
    if sys.version_info < (3, 11):  # noqa: UP036 - the first to be run, by whatever Python make finds
        version = sys.version.split()[0]
        problems.append(f"Python 3.11 or newer is needed; this is {version}. Try: make PYTHON=python3.12 …")
    if unusable := _unusable():
        sys.stderr.write(f"creating .venv{f' again: {unusable}' if VENV.exists() else ''}\n")
        if problem := _create():
            problems.append(problem)
            python = sys.executable  # its own pip can ask the index too
    pip = [python, "-I", "-m", "pip"]
    environment = _pip_environment(pip)
    if problem := _index_problem(pip, environment):
        problems.append(problem)
    builds, note = ([], "") if problem else _torch(pip, environment)
    needed_gb = (_CPU_SIZE_GB if builds or sys.platform != "linux" else _SIZE_GB) + (_DEV_GB if extra == "dev" else 0)
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if unusable and free_gb < needed_gb:
        problems.append(f"installing takes about {needed_gb} GB, and {free_gb:.1f} GB are free in {ROOT}; make room")
    if problems:
        if unusable:
            shutil.rmtree(VENV, ignore_errors=True)
        _fail("\nerror: ".join(problems), 1)
    sys.stderr.write(f"installing ({note}the first time takes minutes)\n")
    return pip, environment, builds


def _create() -> str:
    """Make ``.venv``, empty but for pip. Returns why that failed, in a sentence, or nothing."""
    try:
        import venv  # some distributions leave it out

        venv.create(VENV, clear=True, symlinks=True)
        (VENV / _UNFINISHED).touch()
        command = [str(python_of(VENV)), "-I", "-m", "ensurepip", "--default-pip"]
        subprocess.run(command, check=True, capture_output=True)
    except OSError as error:
        return f"{VENV} cannot be made: {error.strerror}"
    except (ImportError, subprocess.CalledProcessError):
        return "this Python has no venv or no ensurepip. On Debian and Ubuntu: apt install python3-venv"
    return ""


# Why an index gives nothing, in pip's output: none of these holds an address or a password.
_REASON = re.compile(
    r"(?<=\d\] )[A-Z][\w ]+|certificate verify failed(?:: [\w -]+)?|Tunnel connection failed: [\w ]+|timed out"
    r"|\d{3} (?:Client|Server) Error: [\w ]+(?= for url)|too many \d+ error responses|not a trusted or secure host"
)


def _ask(pip: list[str], environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Let pip ask the index, silently, and without the many attempts that it makes by itself."""
    command = [*pip, *words, "--retries", "1"]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def _index_problem(pip: list[str], environment: dict[str, str]) -> str:
    """Fetch the smallest package that is needed. Returns why that failed, in a sentence, or nothing."""
    folder = VENV / ".asked"
    asked = _ask(pip, environment, "download", "-vv", "--no-deps", "-d", str(folder), "six")
    shutil.rmtree(folder, ignore_errors=True)
    said = asked.stdout + asked.stderr
    wants_password = "EOFError" in said
    if not asked.returncode or (wants_password and sys.stdin.isatty()):  # then pip asks the person when it installs
        return ""
    if "No module named pip" in said:
        return "whether the package index answers is not known: this Python has no pip to ask it with"
    found = _REASON.search(said)
    reason = found.group().strip() if found else "it does not offer the package six"
    return (
        f"pip gets nothing from the package index: {'it asks for a password' if wants_password else reason}. Check the "
        "network, the proxy (HTTPS_PROXY) and the index's address (PIP_INDEX_URL, or pip's own settings)"
    )


def _torch(pip: list[str], environment: dict[str, str]) -> tuple[list[str], str]:
    """Which builds of torch and torchvision to take: those for CPUs if Linux has no NVIDIA GPU and the index has both.

    Returns:
        what to ask pip for, nothing to leave it to pip, and a note for the person who waits.
    """
    pins = re.findall(r"^(torch|torchvision)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    filled = pins and any(VENV.glob(f"lib/python*/site-packages/torch-{pins[0][1]}*"))
    if sys.platform != "linux" or not pins or filled:
        return [], ""
    if os.environ.get("DEVICE", "").startswith("cuda") or _has_nvidia_gpu():
        return [], "torch with CUDA libraries is several GB; "
    for name, version in pins:
        listed = _ask(pip, environment, "index", "versions", name).stdout
        if f"{version}+cpu" not in re.split(r"[\s,()]+", listed):
            return [], f"the CUDA build of torch, several GB, as the index has no CPU build of {name} {version}; "
    note = "the CPU build of torch, as there is no NVIDIA GPU here; DEVICE=cuda leaves the choice to pip; "
    return [f"{name}=={version}+cpu" for name, version in pins], note


def _has_nvidia_gpu() -> bool:
    if _NVIDIA_DRIVER.exists():
        return True
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(listed.strip())


def _unusable() -> str:
    """Why ``.venv`` must be made again; empty where it needs no more than an update."""
    if (VENV / _UNFINISHED).exists():
        return "an installation into it was interrupted"
    try:
        code = (
            "import pip, sys; sys.exit(sys.prefix == sys.base_prefix)"  # without its settings it is the base's Python
        )
        subprocess.run([str(python_of(VENV)), "-I", "-c", code], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "its Python is gone or was replaced, or has no pip"
    # Where it was made, its settings say, and the commands in it, which run the Python of that place.
    for name, marks in {"pyvenv.cfg": "command = ", "bin/pip": "/bin/python"}.items():
        text = (VENV / name).read_text(errors="replace") if (VENV / name).is_file() else ""
        if marks in text and not re.search(rf"""[\s!"']{re.escape(str(VENV))}(/bin/python|$)""", text, re.MULTILINE):
            return "it was made for another folder"
    return ""


# How pip reaches an index. What else is set outside would change what is installed, or where.
_OF_THE_INDEX = re.compile(
    r"(index-url|extra-index-url|find-links|no-index|trusted-host|cert|client-cert|proxy|proxies|cache-dir|no-cache-dir"
    r"|timeout|default-timeout|retries|keyring-provider)"
)


def _pip_environment(pip: list[str]) -> dict[str, str]:
    """This process's environment with those settings of pip alone that say how to reach an index."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PIP_")}
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False).stdout
    # Lines such as global.index-url='https://…'; variables win over files.
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in ("global", "install", ":env:") and _OF_THE_INDEX.fullmatch(name):
            environment[f"PIP_{name.upper().replace('-', '_')}"] = ast.literal_eval(value)
    _refuse_unreadable(environment)
    return {**environment, "PIP_CONFIG_FILE": os.devnull}


def _refuse_unreadable(environment: dict[str, str]) -> None:
    """Stop where an address cannot be read, for pip prints parts of such ones, of their passwords, too."""
    sys.path.append(str(ROOT))
    from harness.errors import UsageError, check_addresses

    try:
        check_addresses(environment)
    except UsageError as error:
        _fail(str(error), error.exit_code)


def _compile(python: str) -> None:
    """Byte code of the packages and of the harness, on all cores, where pip takes one; no package's own tests.

    What is left without is compiled when it is imported, so a file that does not compile is not an error here.
    """
    command = [python, "-I", "-m", "compileall", "-qq", "-j", "0", "-x", "site-packages/.*/tests?/"]
    subprocess.run([*command, str(VENV / "lib"), str(ROOT / "harness")], check=False)


def refuse_mistyped(flags: str, known: list[str]) -> None:
    """Stop where a variable on make's command line is nearly one that the harness has, or is it but for its case.

    Others are passed on, for they may be some library's, and said.

    Args:
        flags: MAKEFLAGS, as make gives it to its recipes: options, ``--``, then NAME=value with escaped spaces.
        known: the variables that there are.
    """
    # Also NAME:=value, NAME+=value and the like.
    names = dict.fromkeys(re.findall(r"(?:^|(?<!\\)\s)([^\s=:?+!]+)[:?+!]*=", flags.partition("-- ")[2]))
    unknown = [name for name in names if name not in known]
    for name in unknown:
        if near := difflib.get_close_matches(name.upper().replace("-", "_"), known, n=1):
            _fail(f"no variable {name}; did you mean {near[0]}?", 2)
    if unknown:
        sys.stderr.write(f"{', '.join(unknown)}: not a variable of the harness; passed on, for a library may read it\n")


def refuse_verb(asked: list[str], known: list[str]) -> None:
    """Stop at the first word that is no verb of make, naming the verb, study or recipe that is nearest."""
    unknown = next((word for word in asked if word not in known), None)
    if unknown is None:
        return
    verb, spaces = asked[0], Path(os.environ.get("HARNESS_SEARCH_SPACES") or ROOT / "search_spaces")
    meant = {word: word for word in known}
    if verb in known:
        meant |= {path.stem: f"`make train RECIPE={path.stem}`" for path in spaces.glob("recipes/*.toml")}
        meant |= {path.stem: f"`make {verb} STUDY={path.stem}`" for path in spaces.glob("*.toml")}
        meant |= {unknown: f"`make {verb} DATA={unknown}`"} if Path(unknown).exists() else {}
    near = difflib.get_close_matches(unknown, meant, n=1)
    _fail(f"no verb {unknown}{f'; did you mean {meant[near[0]]}?' if near else ''}\n`make` lists all verbs.", 2)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(code)


def main() -> None:
    """Run the verb in ``.venv``, made ready first. ``HARNESS_NO_VENV`` set: run it with this Python, as things are."""
    refuse_mistyped(os.environ.get("MAKEFLAGS", ""), [*os.environ.get("VARIABLES", "").split(), *_OTHER_VARIABLES])
    words, here = sys.argv[1:], os.environ.get("HARNESS_NO_VENV")
    refuse_verb(os.environ.get("GOALS", "").split(), os.environ.get("VERBS", "").split())
    if words == ["--tools"]:
        python = sys.executable if here else str(ensure("dev"))
        sys.stdout.write(f"{Path(python).parent}\n")
        return
    if words:
        python = sys.executable if here else str(ensure("dashboard" if words[0] == "dashboard" else ""))
    elif _has_click():  # the help needs no more
        python = sys.executable
    elif python_of(VENV).exists() and not (VENV / _UNFINISHED).exists():
        python = str(python_of(VENV))
    else:
        sys.stdout.write(_WITHOUT_CLICK)
        return
    if python != str(python_of(VENV)) or VENV.is_symlink():  # where another version, or none, may be installed
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    os.execv(python, [python, "-P", "-m", "harness", *words])


def _has_click() -> bool:
    try:
        found = importlib.metadata.version("click")
    except importlib.metadata.PackageNotFoundError:
        return False
    return sys.version_info >= (3, 11) and [int(part) for part in re.findall(r"\d+", found)[:2]] >= [8, 5]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        _fail("interrupted; the same command starts again", 130)
