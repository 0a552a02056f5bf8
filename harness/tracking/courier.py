"""Sends a process's journals in the background, so that no training waits for the tracking server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from harness.errors import Fenced, without_secrets
from harness.tracking.spool import Delivery, Refused, Spool, is_owned, journal_path, journals
from harness.tracking.tracker import RunInfo, Tracker

_EVERY_S = 1.0
_LONGEST_PAUSE_S = 30.0
# Seconds between questions whether a run that has nothing to send may still be sent: until then it is kept from others.
_ASK_EVERY_S = 10.0


class Courier(Spool):
    """A spool whose journals a thread of this process sends.

    Args:
        folder: of the journals.
        connect: makes the tracker that they are sent to; called in the thread, again after a failure.
        say: told when the tracker cannot be reached, and when it can again.
    """

    def __init__(self, folder: Path, connect: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        super().__init__(folder, say)
        self.connect = connect
        self._mine: list[str] = []
        self._guards: dict[str, Callable[[], None]] = {}
        self._runs: dict[str, str] = {}
        # By run: its journal's size when all of it had been sent, and when that was.
        self._sent: dict[str, tuple[int, float]] = {}
        self._tracker: Tracker | None = None
        self._away = False
        self._refused: set[str] = set()
        self._closing = Event()
        self._thread = Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def start(self, info: RunInfo) -> str:
        key = super().start(info)
        if key not in self._mine:
            self._mine.append(key)
        return key

    def guard(self, key: str, fence: Callable[[], None]) -> None:
        """Until the run ends, ask before sending anything of it.

        Args:
            key: of the run.
            fence: raises Fenced where its attempt was declared dead: nothing more is sent then.
        """
        self._guards[key] = fence

    def end(self, run_id: str, state: str, *, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        self._guards.pop(run_id, None)
        super().end(run_id, state, scores=scores, tags=tags)

    def run_id(self, key: str) -> str:
        """The tracker's id of a run that was sent, else an empty string."""
        return self._runs.get(key, "")

    def close(self, within_s: float) -> None:
        """Send what is left, for so many seconds at most and not at all while the tracker is away."""
        self._closing.set()
        self._thread.join(within_s)
        left = [key for key in self._mine if journal_path(self.folder, key).is_file()]
        if left:
            self.say(
                f"{len(left)} runs are not wholly in MLflow yet; `harness reconcile` or the next start sends the rest"
            )

    def _run(self) -> None:
        pause = _EVERY_S
        while not self._closing.wait(pause):
            pause = _EVERY_S if self._send_all() else min(2 * pause, _LONGEST_PAUSE_S)
        self._send_all()

    def _send_all(self) -> bool:
        """Whether all was taken. A run that is refused holds up no other; where nobody answers none is tried."""
        taken = True
        for key in list(self._mine):
            delivery = Delivery(journal_path(self.folder, key))
            try:
                size = delivery.path.stat().st_size
            except FileNotFoundError:
                continue
            sent_size, sent_at = self._sent.get(key, (-1, 0.0))
            if size == sent_size and time.monotonic() - sent_at < _ASK_EVERY_S:
                continue
            guard = self._guards.get(key)
            try:
                if guard:
                    guard()
            except Fenced:
                self._let_go(key)
                continue
            except Exception:  # the database is away: whether this may be sent is not known now
                return False
            try:
                self._tracker = self._tracker or self.connect()
                ended = delivery.send(self._tracker)
                self._sent[key] = (size, time.monotonic())
                self._runs[key] = delivery.run_id or self._runs.get(key, "")
            except Refused as error:
                if key not in self._refused:
                    self._refused.add(key)
                    self.say(f"MLflow does not take {key} ({_short(error)}); kept on disk, training goes on")
                taken = False
                continue
            except Exception as error:  # whatever the tracking library raises: it is tried again later
                self._tracker = None
                if not self._away:
                    self._away = True
                    self.say(f"MLflow does not take it ({_short(error)}); kept on disk, training goes on")
                return False
            if self._away:
                self._away = False
                self.say("MLflow takes it again; what was kept is being sent")
            if ended:
                self._mine.remove(key)
                self._sent.pop(key)
        return taken

    def _let_go(self, key: str) -> None:
        self._mine.remove(key)
        self._sent.pop(key, None)
        self._guards.pop(key, None)
        if key in self._owned:
            self._owned.pop(key).release()


@dataclass(slots=True)
class Left:
    """What came of the journals that dead processes left.

    Attributes:
        sent: keys of those that were sent to their end.
        torn: those without an end.
        refused: by key, why the tracker does not take it; the journal stays.
    """

    sent: list[str] = field(default_factory=list)
    torn: list[Delivery] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """What was done, for people."""
        sent = [f"{key}: what was still to be sent to MLflow was sent" for key in self.sent]
        kept = "it is kept, and sent next time"
        return sent + [f"{key}: MLflow does not take it ({why}); {kept}" for key, why in self.refused.items()]


def send_left(folder: Path, tracker_of: Callable[[str], Tracker | None]) -> Left:
    """Send what dead processes left.

    Args:
        folder: of the journals.
        tracker_of: the tracker for a run's key, or None where it is not to be sent now.

    Raises:
        Exception: whatever the tracker raises where it cannot be reached; what was not sent stays.
    """
    left = Left()
    for path in journals(folder):
        if is_owned(path):
            continue
        delivery = Delivery(path)
        key = delivery.key()
        tracker = tracker_of(key) if key else None
        if not key:
            delivery.remove()
        elif tracker is not None:
            try:
                if delivery.send(tracker):
                    left.sent.append(key)
                else:
                    left.torn.append(delivery)
            except Refused as error:
                left.refused[key] = _short(error)
    return left


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    cause = error.__cause__ if isinstance(error, Refused) and error.__cause__ else error
    return f"{type(cause).__name__}: {without_secrets(lines[0])[:160]}" if lines else type(cause).__name__
