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
    """Ctrl-C (or SIGTERM) once: stop at the next snapshot; twice: stop at once (``raise_at_two``: KeyboardInterrupt).

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
        text = "stopping at the next snapshot; Ctrl-C again stops at once" if self.level == 1 else "stopping at once"
        self.say(f"\n{text}")
        if self.level >= 2 and self.raise_at_two:
            raise KeyboardInterrupt

    def raise_if_interrupted(self) -> None:
        """Raise KeyboardInterrupt where there was one: for what needs no checkpoint, such as preparing images."""
        if self.level:
            raise KeyboardInterrupt


def run_interruptibly(work: Callable[[], T], stop: StopSignals) -> T:
    """What ``work`` returns, while interruptions raise ``stop.level``.

    In a notebook, whose kernel handles the signals, the work runs in a thread and the KeyboardInterrupt that the kernel
    raises here counts. No signal reaches any other thread than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    if not in_notebook():
        with stop:
            return work()
    begins: SimpleQueue[bool] = SimpleQueue()

    def begin() -> T:
        # Not before an interruption is counted: one that comes earlier ends everything.
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
