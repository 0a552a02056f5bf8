"""The test's side of the barriers: processes come to named points and wait there for what becomes of them."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

INJECTION = Path(__file__).parent / "injection"


@dataclass
class Arrival:
    """A process that waits at a point."""

    point: str
    pid: int
    link: socket.socket

    def release(self, **answer: object) -> None:
        with suppress(OSError):
            self.link.sendall(json.dumps({"do": "go", **answer}).encode() + b"\n")
        self.link.close()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.link.close()


class Barrier:
    """Listens for arrivals; ``points`` as in ``injection/sitecustomize.py``."""

    def __init__(self, **points: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="barrier-")
        self.path = str(Path(self.folder) / "socket")
        self.arrivals: queue.Queue[Arrival] = queue.Queue()
        self.env = {
            "HARNESS_TEST_POINTS": " ".join(f"{name}={place}" for name, place in points.items()),
            "HARNESS_TEST_BARRIER": self.path,
        }
        self.passing = False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            with suppress(ValueError, OSError):
                found = json.loads(link.makefile().readline())
                arrival = Arrival(found["point"], found["pid"], link)
                if self.passing:
                    arrival.release()
                else:
                    self.arrivals.put(arrival)

    def wait(self, point: str, *, nth: int = 1, other_than: int = 0, timeout: float = 120) -> Arrival:
        """The nth arrival at a point, of another process than that, from now on; all others go on."""
        self.passing = False
        while True:
            arrival = self.arrivals.get(timeout=timeout)
            if arrival.point == point and arrival.pid != other_than:
                nth -= 1
                if nth == 0:
                    return arrival
            arrival.release()

    def pass_on(self) -> None:
        """Until the next :meth:`wait` nobody waits."""
        self.passing = True
        with suppress(queue.Empty):
            while True:
                self.arrivals.get_nowait().release()
