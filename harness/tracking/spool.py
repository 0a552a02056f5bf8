"""What is to be tracked, first on disk: one journal a run, sent in order by whoever comes to it, each thing once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness import atomic
from harness.gan.hparams import digest
from harness.tracking.tracker import Point, RunInfo, Tracker, finite

# Journals together may take this much of the disk (MB) before curve points are kept in the trials' folders only.
LIMIT_MB = 256


class Refused(Exception):
    """The tracker answers, and does not take a run's record; others it may take."""


class Spool:
    """A :class:`harness.tracking.tracker.Tracker` that writes journals; a run's id is its key.

    Nothing here waits for a server, and nothing here raises: where the disk is full, a line is said once, and what
    could not be written is in the trial's folder all the same.

    Args:
        folder: of the journals.
        say: told once where something could not be kept.
        limit_bytes: for all journals together.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], limit_bytes: int = LIMIT_MB * 10**6) -> None:
        self.folder, self.say, self.limit = folder, say, limit_bytes
        self._owned: dict[str, FileLock] = {}
        self._said: set[str] = set()

    def start(self, info: RunInfo) -> str:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = journal_path(self.folder, info.key)
            # Held while this process writes; the system lets go of it where it dies.
            owner = FileLock(path.with_suffix(".owner"))
            owner.acquire(timeout=10)
            self._owned[info.key] = owner
            _mend(path)
        except (OSError, Timeout) as error:
            self._say_once("start", f"tracking cannot be kept ({error}); training goes on")
        self._append(info.key, {"op": "start", "info": asdict(info), "at": _now_ms()})
        return info.key

    def log(self, run_id: str, points: Iterable[Point], *, at_ms: int | None = None) -> None:
        rows = [list(point) for point in finite(points)]
        if not rows:
            return
        if self._size() > self.limit:
            self._say_once(
                "limit", f"{self.folder} holds {self.limit / 1e6:.0f} MB; curves are kept in the trials only"
            )
            return
        self._append(run_id, {"op": "log", "points": rows, "at": _now_ms() if at_ms is None else at_ms})

    def image(self, run_id: str, name: str, step: int, path: Path) -> None:
        self._append(run_id, {"op": "image", "name": name, "step": step, "file": str(path.resolve())})

    def artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        self._append(run_id, {"op": "artifact", "file": str(path.resolve()), "folder": folder})

    def end(self, run_id: str, state: str, *, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        self._append(run_id, {"op": "end", "state": state, "scores": dict(scores), "tags": dict(tags)})
        if run_id in self._owned:
            self._owned.pop(run_id).release()

    def runs_by_key(self) -> dict[str, tuple[str, str]]:
        return {}

    def drop_doubles(self) -> list[str]:
        return []

    def revive(self, run_id: str) -> bool:
        return False

    def _append(self, run_id: str, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            with journal_path(self.folder, run_id).open("ab") as file:
                start = file.tell()
                try:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(start)  # half a line would swallow the next one
                    raise
        except OSError as error:
            self._say_once("append", f"tracking cannot be kept ({error}); training goes on")

    def _size(self) -> int:
        try:
            return sum(entry.stat().st_size for entry in os.scandir(self.folder) if entry.name.endswith(".jsonl"))
        except OSError:
            return 0

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self.say(text)


def journal_path(folder: Path, key: str) -> Path:
    """A run's journal. Keys hold slashes; the digest is the file's name."""
    return folder / f"{digest(key)[:24]}.jsonl"


def journals(folder: Path) -> list[Path]:
    """All journals, the one that was not written to for longest first."""
    found = []
    for path in folder.glob("*.jsonl"):
        with suppress(FileNotFoundError):  # all of it was sent meanwhile
            found.append((path.stat().st_ctime_ns, path.name, path))
    return [path for *_, path in sorted(found)]


def is_owned(path: Path) -> bool:
    """Whether a living process still writes a journal."""
    try:
        with FileLock(path.with_suffix(".owner"), timeout=0):
            return False
    except Timeout:
        return True


class Delivery:
    """Sends one journal's records to a tracker, from where the last delivery ended.

    What is sent twice because a crash came before the cursor was written is one thing to the tracker: points carry
    the time at which they were made, pictures and runs are looked for first.

    Args:
        path: the journal.

    Attributes:
        run_id: the tracker's id of the run, once its start was sent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = ""
        self.cursor_path = path.with_suffix(".cursor")

    def send(self, tracker: Tracker) -> bool:
        """Send what is new; whether the run's end was sent, and the journal removed with it.

        A run that a person deleted meanwhile is restored; one that is gone for good is made anew from the journal.

        Raises:
            Refused: the tracker does not take this run's record.
            Exception: whatever the tracker raises while it cannot be reached. What was sent is noted in any case, the
                rest is sent next time.
        """
        with FileLock(self.path.with_suffix(".sending")):
            if not self.path.is_file():
                return True
            start, self.run_id = self._cursor()
            ended = False
            for offset, record in self._records(start):
                try:
                    self.run_id, ended = _send(tracker, self.run_id, record)
                except Exception as error:
                    if not self.run_id or not self._revived(tracker, error):
                        raise
                    self.run_id, ended = _send(tracker, self.run_id, record)
                atomic.write_text(self.cursor_path, json.dumps({"offset": offset, "run_id": self.run_id}))
            if ended:
                self.remove()
            return ended

    def _revived(self, tracker: Tracker, error: Exception) -> bool:
        """Whether the run was restored, which is asked of the tracker: it raises where it cannot be reached."""
        try:
            if tracker.revive(self.run_id):
                return True
        except KeyError:
            self.cursor_path.unlink(missing_ok=True)
            raise Refused("its run is gone; it is made anew") from error
        raise Refused(str(error)) from error

    def remove(self) -> None:
        """Forget the journal: all of it is where it belongs."""
        for suffix in (".jsonl", ".cursor", ".owner", ".sending"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)
        atomic.remove_torn(self.path.parent, self.cursor_path.name)

    def key(self) -> str:
        """The key of the run, or an empty string where not even its start was written."""
        for _, record in self._records(0):
            return str(record.get("info", {}).get("key", ""))
        return ""

    def _cursor(self) -> tuple[int, str]:
        """(where the first unsent record begins, the run's id so far)."""
        try:
            found = json.loads(self.cursor_path.read_text())
            return int(found["offset"]), str(found["run_id"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""

    def _records(self, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
        with self.path.open("rb") as file:
            file.seek(offset)
            while (line := file.readline()).endswith(b"\n"):
                try:
                    record = json.loads(line)
                except ValueError:  # a bad block of the disk; the rest is worth having
                    continue
                yield file.tell(), record


def _send(tracker: Tracker, run_id: str, record: dict[str, Any]) -> tuple[str, bool]:
    """(the run's id, whether it ended)."""
    op = record["op"]
    if op == "start":
        return tracker.start(RunInfo(**record["info"])), False
    if not run_id:  # its start could not be written
        return run_id, False
    if op == "log":
        tracker.log(run_id, [Point(*row) for row in record["points"]], at_ms=record["at"])
    elif op == "image":
        if (path := Path(record["file"])).is_file():
            tracker.image(run_id, record["name"], record["step"], path)
    elif op == "artifact":
        if (path := Path(record["file"])).exists():  # an older checkpoint may be gone by now
            tracker.artifact(run_id, path, record["folder"])
    elif op == "end":
        tracker.end(run_id, record["state"], scores=record["scores"], tags=record["tags"])
        return run_id, True
    return run_id, False


def _mend(path: Path) -> None:
    """Cut off a line that a crash left half written."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


def _now_ms() -> int:
    return int(time.time() * 1000)
