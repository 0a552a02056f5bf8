"""Processes forked from one that has done a worker's imports (sweep/engines/nursery.py)."""

from __future__ import annotations

import multiprocessing as mp
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import TypeVar, cast

from harness.errors import HarnessError, SweepError

# Where forking is sound, workers come from a process that has done their imports.
FORKS = sys.platform == "linux"

T = TypeVar("T")


def make_ready() -> None:
    """Begin what takes a worker's process seconds, the imports, while the sweep is still being prepared."""
    if FORKS:
        forkserver.set_forkserver_preload(["harness.sweep.engines.nursery"])
        forkserver.ensure_running()


def apart(function: Callable[..., T], *arguments: object) -> T:
    """What a function gives in a process forked from the one that has done a worker's imports.

    So a supervisor spends no seconds on importing torch. Where nothing is forked, or torch is imported here already,
    the function is called here.

    Raises:
        HarnessError: the function's own.
        SweepError: the process died.
    """
    return function(*arguments) if "torch" in sys.modules else forked(function, *arguments)


def forked(function: Callable[..., T], *arguments: object) -> T:
    """As :func:`apart`, whatever is imported here: for what takes memory of a GPU, which this process would keep.

    Raises:
        HarnessError: the function's own.
        SweepError: the process died.
    """
    if not FORKS:
        return function(*arguments)
    make_ready()
    context = mp.get_context("forkserver")
    answer, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, dict(os.environ), function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        found = answer.recv()
    except EOFError:
        found = SweepError("a process that was asked about this machine died", "Out of memory? Start again.")
    process.join()
    answer.close()
    if isinstance(found, HarnessError):
        raise found
    return cast(T, found)


def _answer(
    answer: Connection, environment: Mapping[str, str], function: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    adopt_environment(environment)
    try:
        answer.send(function(*arguments))
    except HarnessError as error:
        answer.send(error)


def adopt_environment(environment: Mapping[str, str]) -> None:
    # What this process was forked from may have been started in another one.
    os.environ.clear()
    os.environ.update(environment)
