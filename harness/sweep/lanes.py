"""Lanes: the trials that a worker runs at once, each in a thread; images, extractors and connections are shared.

One training of a small network leaves most of a GPU idle. On CUDA each lane captures and replays its graphs, and
scores, on a stream of its own (docs/performance.md).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Event, Lock, Thread

import torch

from harness.errors import HarnessError
from harness.machine.processes import use_threads

# Seconds between looks at the lanes.
_LOOK_S = 1.0
# Another lane opens if the GPU has this many times the memory of one free, and room to score a batch (bytes).
_MARGIN, _SCORED_BYTES = 1.5, 4 * 2**30
# Streams that torch has on a GPU for one process; more lanes would share them.
_STREAMS = 32


class Lanes:
    """At most ``most`` threads; on CUDA the next one starts once the others have trained, if memory is left.

    Lanes call ``stop`` to learn whether to stop. As long as all of them do, the main thread calls ``should_stop``: the
    supervisor then knows that the worker is alive.
    """

    def __init__(self, most: int = 1, should_stop: Callable[[], bool] = lambda: False) -> None:
        self.most, self.should_stop = min(most, _STREAMS), should_stop
        self.open = 1
        self._change, self._news = Lock(), Event()
        self._threads: list[Thread] = []
        self._errors: list[BaseException] = []
        # By thread: those that have asked since the main thread did, and those that have trained.
        self._asked: set[int | None] = set()
        self._trained: set[int | None] = set()

    def stop(self) -> bool:
        """Whether the calling lane must stop at its next checkpoint, because the worker must or another lane failed."""
        self._asked.add(threading.get_ident())
        return bool(self._errors) or self.should_stop()

    def has_trained(self) -> None:
        """Note that the calling lane has trained: the GPU's memory now shows what a lane takes."""
        self._trained.add(threading.get_ident())

    def leave(self) -> bool:
        """Close the calling lane for good, unless it is the last one; return whether it is closed."""
        with self._change:
            if self.open == 1:
                return False
            self.open -= 1
            self.most = self.open
            return True

    def run(self, work: Callable[[], object], device: torch.device, threads: int) -> None:
        """Run ``work`` in each lane, with this many threads of torch, until all have returned.

        A lane's HarnessError is raised when the others have stopped. Any other error, such as a lost device, is raised
        at once: the process must end, and other workers continue its trials from their checkpoints.
        """
        before = _reserved(device)

        def lane() -> None:
            try:
                use_threads(threads)
                with _own_stream(device):
                    work()
            except BaseException as error:  # a user's network may even exit
                self._errors.append(error)
            finally:
                self._news.set()

        def start() -> None:
            self._threads.append(Thread(target=lane, name=f"lane {len(self._threads)}", daemon=True))
            self._threads[-1].start()

        start()
        while running := {thread.ident for thread in self._threads if thread.is_alive()}:
            if len(running) == len(self._threads) and self._may_open(running, device, before):
                start()
                continue
            self._news.wait(_LOOK_S)
            self._news.clear()
            for error in self._errors:
                if not isinstance(error, HarnessError):
                    raise error
            if running <= self._asked:
                self._asked.clear()
                self.should_stop()
        if self._errors:
            raise self._errors[0]

    def _may_open(self, running: set[int | None], device: torch.device, before: int) -> bool:
        if device.type == "cuda" and not (running <= self._trained and self._fits(device, before)):
            return False
        with self._change:
            more = self.open < self.most
            self.open += more
        return more

    def _fits(self, device: torch.device, before: int) -> bool:
        free, _ = torch.cuda.mem_get_info(device)
        return free > _MARGIN * (_reserved(device) - before) / self.open + _SCORED_BYTES


def _reserved(device: torch.device) -> int:
    """Bytes of a GPU that this process holds for tensors, those of graphs included."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def _own_stream(device: torch.device) -> AbstractContextManager[object]:
    """On CUDA a stream that waits for what was loaded on the default one; elsewhere nothing."""
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.default_stream(device))
    return torch.cuda.stream(stream)
