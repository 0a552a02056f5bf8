"""The fork server: a process that has imported what a worker needs (sweep/engines/nursery.py) and forks workers."""

from __future__ import annotations

import multiprocessing as mp
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import TypeVar, cast

from harness.errors import HarnessError, SweepError

# Forking is safe on Linux only; elsewhere processes are spawned.
FORKS = sys.platform == "linux"

T = TypeVar("T")


def start_fork_server() -> None:
    """Start the imports, which take seconds, while the sweep is still being prepared; without forking, do nothing."""
    if FORKS:
        forkserver.set_forkserver_preload(["harness.sweep.engines.nursery"])
        forkserver.ensure_running()


def call_with_torch(function: Callable[..., T], *arguments: object) -> T:
    """Call a function that needs torch: here if torch is imported already, else in a process of the fork server.

    So a supervisor never spends seconds on importing torch.

    Raises:
        HarnessError: the function's own.
        SweepError: the process died.
    """
    return function(*arguments) if "torch" in sys.modules else call_in_fork(function, *arguments)


def call_in_fork(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a process of the fork server, so that this process keeps none of the GPU memory it takes.

    Where nothing is forked, the function is called here.

    Raises:
        HarnessError: the function's own.
        SweepError: the process died.
    """
    if not FORKS:
        return function(*arguments)
    start_fork_server()
    context = mp.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, dict(os.environ), function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = SweepError("a process that was asked about this machine died", "Out of memory? Start again.")
    process.join()
    receiver.close()
    if isinstance(result, HarnessError):
        raise result
    return cast(T, result)


def _send_result(
    sender: Connection, environment: Mapping[str, str], function: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    adopt_environment(environment)
    try:
        sender.send(function(*arguments))
    except HarnessError as error:
        sender.send(error)


def adopt_environment(environment: Mapping[str, str]) -> None:
    """Take over the environment of the process that asked; the fork server may have been started in another one."""
    os.environ.clear()
    os.environ.update(environment)
