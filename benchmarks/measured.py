"""Calls that are timed, and ours as a worker runs it."""

from __future__ import annotations

import multiprocessing as mp
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from harness.machine.forks import same_imports
from harness.machine.processes import exact_arithmetic, keep_memory, usable_cores, use_threads

Timed = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a row measured itself: a value in the row's unit, and what is said beside it, by name."""

    value: float
    beside: dict[str, float] = field(default_factory=dict)


def timed(call: Timed) -> Measured:
    """What the call measured itself, or the seconds that it took."""
    started = time.perf_counter()
    found = call()
    return found if isinstance(found, Measured) else Measured(value=time.perf_counter() - started)


@contextmanager
def neighbours(n: int) -> Iterator[None]:
    """As many processes that compute all the time."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@contextmanager
def as_worker(make: Callable[..., Sequence[Timed]], *arguments: object) -> Iterator[list[Timed]]:
    """The calls that ``make(*arguments)`` gives, in a process that is set up as a worker's; it waits between them.

    What a worker sets for its whole process would be the baseline's, too.
    """
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make, arguments))
    with same_imports():
        process.start()
    theirs.close()

    def call(index: int) -> Measured:
        ours.send(index)
        return Measured(value=ours.recv())

    try:
        yield [partial(call, index) for index in range(ours.recv())]
        ours.send(None)
        process.join()
    finally:
        process.kill()


def _serve(pipe: Connection, make: Callable[..., Sequence[Timed]], arguments: tuple[object, ...]) -> None:
    keep_memory()
    exact_arithmetic()
    use_threads(usable_cores())
    calls = make(*arguments)
    pipe.send(len(calls))
    for index in iter(pipe.recv, None):
        pipe.send(timed(calls[index]).value)
