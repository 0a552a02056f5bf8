"""The fork server: a process that has imported what a worker needs (sweep/engines/nursery.py) and forks workers."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing import current_process, forkserver, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, TypeVar, cast

from harness.errors import HarnessError, SweepError, UsageError

# Forking is safe on Linux only; elsewhere processes are spawned.
FORKS = sys.platform == "linux"

# Where this package is.
_ROOT = str(Path(__file__).absolute().parents[2])
# How often a process is forked before it is given up.
_FORKS = 3
# Seconds that a killed fork server may take to die; it lives if only a process that it forked was killed.
_DYING_S = 5.0
# Bytes of the folder's path: those of Ray's sockets are longest, with some 75 more.
_LONGEST_TMPDIR = 32

T = TypeVar("T")


def search_path() -> list[str]:
    """The folders where this process looks for modules."""
    return [str(Path(folder).absolute()) for folder in sys.path]


def starting_path() -> dict[str, str]:
    """Variables with which a Python process starts as this one did, and finds this package.

    It looks neither in the current folder nor in the script's, which Python puts first. A ``types.py`` there would be
    executed before any line of ours, although this process, which had begun without that folder, never imports it.
    """
    given = os.environ.get("PYTHONPATH")
    folders = [str(Path(folder).absolute()) for folder in given.split(os.pathsep)] if given else []
    if _ROOT in search_path() and Path(_ROOT).name not in ("site-packages", "dist-packages"):
        folders.append(_ROOT)
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(folders)}


def short_spin() -> dict[str, str]:
    """Variables that shorten how long OpenMP's threads wait busily; none where this process's environment sets that.

    By default libgomp's threads spin until their time slice ends: with one busy process on the same cores, a step of
    small batches then takes five to ten times as long (docs/performance.md). OpenMP reads this when torch is imported.
    """
    chosen = any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"))
    return {} if chosen else {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}  # of GCC; of LLVM and Intel, in ms


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with other values inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def same_imports() -> Iterator[None]:
    """Python processes started inside import what this one would: what they run, they run with its ``sys.path``."""
    with environment({**starting_path(), **short_spin()}):
        yield


@contextmanager
def short_temporary_folder() -> Iterator[str]:
    """A folder for sockets, whose paths have at most 107 bytes: that of TMPDIR, or another if its path is too long."""
    default = tempfile.gettempdir()
    folders = (default, "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - folders of their own are made there
    fitting = (path for path in folders if len(os.fsencode(path)) <= _LONGEST_TMPDIR and os.access(path, os.W_OK))
    tempfile.tempdir = next(fitting, None)
    if tempfile.tempdir is None:
        tempfile.tempdir = default
        raise UsageError(f"TMPDIR={default} is too long for a socket's path", "Set TMPDIR to a shorter folder.")
    try:
        yield tempfile.tempdir
    finally:
        tempfile.tempdir = default


class _Mainless(BaseProcess):
    """A process that does not import the caller's main module.

    multiprocessing has its children run the main script again, up to ``if __name__ == "__main__"``. A script without
    that line would start its sweep again in each of them.
    """

    def start(self) -> None:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # has neither a path nor a spec to import it by
        try:
            with same_imports():
                super().start()
        finally:
            sys.modules["__main__"] = main


class ForkContext(ForkServerContext):
    class Process(_Mainless, ForkServerProcess):
        """Forked; tried again if the fork server is killed meanwhile, or its socket is cleaned away with old files."""

        def start(self) -> None:
            for attempts_left in reversed(range(_FORKS)):
                try:
                    with short_temporary_folder():
                        return super().start()
                except FileNotFoundError:
                    if not attempts_left:
                        raise SweepError(
                            f"the folder for temporary files, {tempfile.gettempdir()}, is emptied again and again",
                            "Set TMPDIR to another folder. What was done is kept: start again to continue.",
                        ) from None
                    _leave_the_fork_server()
                except (EOFError, ConnectionError):
                    if not attempts_left:
                        raise SweepError(
                            f"the process that workers are started from was killed {_FORKS} times",
                            "Out of memory? What was done is kept: start again to continue.",
                        ) from None
                    _await_death_of_the_fork_server()
            return None


def _await_death_of_the_fork_server() -> None:
    """The library takes a killed fork server for alive until its memory is freed; wait for that."""
    end = time.monotonic() + _DYING_S
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # there is no public way
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < end:
        time.sleep(0.01)  # WNOWAIT: by the exit status the library knows that it must start a new one


class SpawningContext(SpawnContext):
    class Process(_Mainless, SpawnProcess):
        """Spawned."""

    def __init__(self) -> None:
        with same_imports():  # a process too, which the first lock or queue would start
            resource_tracker.ensure_running()


def _leave_the_fork_server() -> None:
    """Have the next call start a new one, with a folder for its socket; this one ends when all that it forked has."""
    if folder := current_process()._config.get("tempdir"):  # type: ignore[attr-defined]
        # The library removes it in the end, and fails without it.
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    server: Any = forkserver._forkserver
    os.close(server._forkserver_alive_fd)
    server._forkserver_pid = None


def worker_context() -> ForkContext | SpawningContext:
    """How this platform starts the processes that train and score."""
    start_fork_server()
    return ForkContext() if FORKS else SpawningContext()


def start_fork_server() -> None:
    """Start the imports, which take seconds, while the sweep is still being prepared; without forking, do nothing."""
    if FORKS:
        forkserver.set_forkserver_preload(["harness.sweep.engines.nursery"])
        with same_imports(), short_temporary_folder():
            forkserver.ensure_running()


def call_with_torch(function: Callable[..., T], *arguments: object) -> T:
    """Call a function that needs torch: here if torch is imported, else in a fork, for importing it takes seconds."""
    return function(*arguments) if "torch" in sys.modules else call_in_fork(function, *arguments)


def call_in_fork(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a forked process, so that its GPU memory is free again when it returns."""
    if not FORKS:
        return function(*arguments)
    context = worker_context()
    receiver, sender = context.Pipe(duplex=False)
    act = partial(function, *arguments)
    process = context.Process(target=_send_result, args=(sender, dict(os.environ), act), daemon=True)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = SweepError("a process that was asked about this machine died", "Out of memory? Start again.")
    except BaseException:  # such as a Ctrl-C: the answer is not wanted
        process.kill()
        raise
    finally:
        process.join()
        receiver.close()
    if isinstance(result, HarnessError):
        raise result
    return cast(T, result)


def _send_result(sender: Connection, environment: Mapping[str, str], act: Callable[[], object]) -> None:
    adopt_environment(environment)
    end_with_the_parent()
    try:
        sender.send(act())
    except HarnessError as error:
        sender.send(error)


def end_with_the_parent() -> None:
    """End this process when its parent is killed; nothing else would end it."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def adopt_environment(environment: Mapping[str, str]) -> None:
    """Replace this process's environment by its parent's: the fork server may have been started with another."""
    os.environ.clear()
    os.environ.update(environment)
