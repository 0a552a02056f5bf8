"""Ctrl-C and SIGTERM as a request to stop at the next checkpoint, without taking them from a notebook."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
# Seconds between two looks for an interruption, where a notebook waits.
_POLL_S = 0.2


class StopSignals:
    """Ctrl-C (or SIGTERM) once: stop at the next checkpoint; twice: stop at once (``raise_at_two``: KeyboardInterrupt).

    Handlers are installed inside a ``with`` block only.
    """

    def __init__(self, say: Callable[[str], None], *, raise_at_two: bool = False) -> None:
        self.level, self.say, self.raise_at_two = 0, say, raise_at_two

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:
            signal.signal(number, self.interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def interrupt(self, *_: object) -> None:
        self.level += 1
        text = "stopping at the next checkpoint; Ctrl-C again stops at once" if self.level == 1 else "stopping at once"
        self.say(f"\n{text}")
        if self.level >= 2 and self.raise_at_two:
            raise KeyboardInterrupt

    def raise_if_interrupted(self) -> None:
        """Raise KeyboardInterrupt after an interruption: for work without checkpoints, such as preparing images."""
        if self.level:
            raise KeyboardInterrupt


def run_interruptibly(work: Callable[[], T], stop: StopSignals) -> T:
    """The result of ``work``; interruptions meanwhile raise ``stop.level``.

    In a notebook, where the kernel handles signals, the work runs in a thread, and each KeyboardInterrupt that the
    kernel raises here is counted. Signals reach the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    if not in_notebook():
        with stop:
            return work()
    begins: SimpleQueue[bool] = SimpleQueue()

    def begin() -> T:
        # Start only once interruptions are counted; an earlier one ends everything.
        if not begins.get():
            raise KeyboardInterrupt
        return work()

    with ThreadPoolExecutor(1) as thread:
        try:
            result = thread.submit(begin)
            while True:
                try:
                    begins.put(True)
                    wait([result], _POLL_S)
                    if result.done():
                        return result.result()
                except KeyboardInterrupt:
                    if result.done():
                        raise
                    stop.interrupt()
        finally:
            begins.put(False)


def in_notebook() -> bool:
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"
