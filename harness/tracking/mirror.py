"""Shows in MLflow what runs' folders record: idempotent, from where it stopped, and nothing waits for it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from harness import atomic
from harness.errors import Fenced, first_line
from harness.tracking.mlflow import MlflowTracker, find_run
from harness.training.run_folder import RunEnd, RunFolder, RunRecord, grid_kimg

if TYPE_CHECKING:
    from mlflow import MlflowClient

_EVERY_S = 1.0
_LONGEST_PAUSE_S = 30.0
# Seconds between questions whether a run that has nothing new may still be sent: until then it is kept from others.
_ASK_EVERY_S = 10.0


class Refused(Exception):
    """MLflow answered, but refused one run's record; it may accept others."""


class Reflection:
    """One run's record, and how much of it is in MLflow.

    Sending again, after a crash before the cursor was written, changes nothing: points and pictures that MLflow has are
    left out, runs are found by their key, files are replaced. ``run_id`` is MLflow's, empty until the run is opened
    there. ``lock`` is held by the process that mirrors the run; the system releases it if that dies.
    """

    def __init__(self, path: Path, guard: Callable[[], None] = lambda: None) -> None:
        self.path, self.folder, self.guard = path, RunFolder(path.parent), guard
        # What a mirror sent last, and when; whether it was refused.
        self.sent: tuple[int, ...] = ()
        self.sent_at, self.refused = 0.0, False
        self.cursor_path = path.with_suffix(".mirror")
        self.lock = FileLock(path.with_name(f".{path.stem}.lock"))
        try:
            cursor = json.loads(self.cursor_path.read_text(encoding="utf-8"))
            self.run_id, self._opened_ms = str(cursor["run_id"]), int(cursor["opened_ms"])
            self._ended = bool(cursor["ended"])
        except (OSError, ValueError, KeyError, TypeError):
            self.run_id, self._opened_ms, self._ended = "", 0, False

    def unsent(self) -> RunRecord | None:
        """The record, unless it is in MLflow to its end, or cannot be read."""
        try:
            record = RunRecord.read(self.path)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None if self._ended and self._opened_ms == record.opened_ms else record

    def changed_at(self) -> tuple[int, ...]:
        """Differs where there is something new to send."""
        stamps = [len(self.folder.grids())]
        for path in (self.path, self.folder.curve):
            with suppress(FileNotFoundError):
                stamps.append(path.stat().st_mtime_ns)
        return tuple(stamps)

    def send(self, runs: MlflowTracker, end: RunEnd | None = None) -> bool:
        """Send what is new; whether the run is in MLflow to its end, which is ``end`` where its folder has none.

        A run that a person deleted meanwhile is restored; one that is gone for good is made again from the record.
        Raises Refused if MLflow refuses it, and whatever MLflow raises if it cannot be reached.
        """
        record = self.unsent()
        if record is None:
            return True
        # A pause is an end only as long as the database knows no later one.
        paused = record.end is not None and record.end.state == "WAITING"
        end = (end or record.end) if paused else (record.end or end)
        try:
            self._send(runs, record, end)
        except Exception as error:
            if not self.run_id:
                raise
            try:
                revived = runs.revive(self.run_id)  # which raises where MLflow cannot be reached
            except KeyError:
                self._move("", 0, ended=False)
                raise Refused("its run is gone; it is made again") from error
            if not revived:
                raise Refused(str(error)) from error
            self._send(runs, record, end)
        return end is not None

    def restore(self, runs: MlflowTracker) -> bool:
        """Bring back the run if a person deleted it, and it is not gone for good; whether it was."""
        with suppress(KeyError):
            return bool(self.run_id) and runs.revive(self.run_id)
        return False

    def forget_lost(self, client: MlflowClient) -> None:
        """Have the run sent again if MLflow, whose database may be another or older, lacks it, its end or its files."""
        run = find_run(client, self.run_id)
        if self.run_id and (
            run is None
            or (self._ended and (run.info.status == "RUNNING" or lacks_files(self.folder, client, self.run_id)))
        ):
            self._move("", 0, ended=False)

    def send_again(self, runs: MlflowTracker, end: RunEnd) -> None:
        """Send a run that ended from its beginning; what MLflow has of it is left out."""
        self._move(self.run_id, 0, ended=False)
        self.send(runs, end)

    def _send(self, runs: MlflowTracker, record: RunRecord, end: RunEnd | None) -> None:
        if not self.run_id or self._opened_ms != record.opened_ms:
            self.run_id = runs.start(record.info, self.run_id)
            runs.artifact(self.run_id, self.folder.hparams)
            self._move(self.run_id, record.opened_ms, ended=False)
        runs.log(self.run_id, record.points(self.folder.read_curve()))
        for grid in self.folder.grids():
            if (step := round(grid_kimg(grid) * 1000)) <= round(record.kimg * 1000):
                runs.image(self.run_id, "samples", step, grid)
        if (final := self.folder.grid(record.kimg)).is_file():
            # MLflow opens a series of images at step 0: this one shows its picture at once.
            runs.image(self.run_id, "final_samples", 0, final)
        if end is not None:
            files = [(self.folder.curve, "")]
            if end.state != "WAITING":  # a paused run has another checkpoint at its end
                files += [(path, "checkpoint") for path in self.folder.checkpoints()[:1]]
            if end.state == "COMPLETE":
                model = (self.folder.weights, self.folder.discriminator, self.folder.hparams)
                files += [*((path, "model") for path in model), (self.folder.summary, "")]
            for path, where in files:
                if path.is_file():  # an older checkpoint may be gone by now
                    runs.artifact(self.run_id, path, where)
            runs.end(self.run_id, end.state, scores=end.scores, tags=end.tags)
            self._move(self.run_id, record.opened_ms, ended=True)

    def _move(self, run_id: str, opened_ms: int, *, ended: bool) -> None:
        self.run_id, self._opened_ms, self._ended = run_id, opened_ms, ended
        cursor = {"run_id": run_id, "opened_ms": opened_ms, "ended": ended}
        atomic.write_text(self.cursor_path, json.dumps(cursor))


def lacks_files(folder: RunFolder, client: MlflowClient, run_id: str) -> bool:
    """Whether a run in MLflow has not all kinds of files that its folder has: a person may have deleted them alone."""
    sent = {folder.hparams.name: folder.hparams.is_file(), "images": bool(folder.grids())}
    there = {item.path for item in client.list_artifacts(run_id)} if any(sent.values()) else set()
    return any(is_sent and name not in there for name, is_sent in sent.items())


class Mirror:
    """Follows the runs of this process in a thread, which calls ``connect``, again after a failure."""

    def __init__(self, connect: Callable[[], MlflowTracker], say: Callable[[str], None]) -> None:
        self.connect, self.say = connect, say
        self._followed: dict[Path, Reflection] = {}
        self._runs: MlflowTracker | None = None
        self._away = False
        self._closing = Event()
        self._thread = Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def follow(self, record: Path, guard: Callable[[], None] = lambda: None) -> None:
        """Show the run of a record until its end; ``guard`` raises Fenced where its attempt was declared dead."""
        self._followed[record] = Reflection(record, guard)

    def close(self, within_s: float) -> None:
        """Send what is left, for at most ``within_s`` seconds and not at all while MLflow is away."""
        self._closing.set()
        self._thread.join(within_s)
        if left := sum(Reflection(record).unsent() is not None for record in self._followed):
            self.say(
                f"{left} runs are not completely in MLflow yet; `harness reconcile` or the next start sends the rest"
            )

    def _run(self) -> None:
        pause = _EVERY_S
        while not self._closing.wait(pause):
            pause = _EVERY_S if self._send_all() else min(2 * pause, _LONGEST_PAUSE_S)
        self._send_all()
        for reflection in self._followed.values():
            reflection.lock.release()

    def _send_all(self) -> bool:
        """Whether everything was sent. A refused run does not hold up others; without an answer no other is tried."""
        taken = True
        for reflection in list(self._followed.values()):
            changed_at = reflection.changed_at()
            if changed_at == reflection.sent and time.monotonic() - reflection.sent_at < _ASK_EVERY_S:
                continue
            try:
                if not reflection.lock.is_locked:
                    reflection.lock.acquire(timeout=0)
                reflection.guard()
            except Timeout:  # another process sends what an earlier one left
                continue
            except Fenced:
                self._let_go(reflection)
                continue
            except Exception:  # the database is away: whether this may be sent is not known now
                return False
            try:
                self._runs = self._runs or self.connect()
                ended = reflection.send(self._runs)
                reflection.sent, reflection.sent_at = changed_at, time.monotonic()
            except Refused as error:
                record, taken = reflection.unsent(), False
                if record and not reflection.refused:
                    reflection.refused = True
                    said = f"MLflow refused {record.info.key} ({_short(error)})"
                    self.say(f"{said}; it is kept on disk, training continues")
                continue
            except Exception as error:  # whatever MLflow raises: it is tried again later
                self._runs = None
                if not self._away:
                    self._away = True
                    self.say(f"MLflow failed ({_short(error)}); runs are kept on disk, training continues")
                return False
            if self._away:
                self._away = False
                self.say("MLflow answers again; what was kept is being sent")
            if ended:
                self._let_go(reflection)
        return taken

    def _let_go(self, reflection: Reflection) -> None:
        if self._followed.get(reflection.path) is reflection:  # not one that was paused, and is followed again
            del self._followed[reflection.path]
        reflection.lock.release()


def send_left(
    records: Iterable[Path],
    runs_of: Callable[[RunRecord], MlflowTracker],
    end_of: Callable[[RunRecord], RunEnd | None] = lambda record: None,
) -> dict[str, str]:
    """Send what dead processes, and MLflow's outages, left; what was done, by the run's key.

    ``end_of`` is how a run ended whose folder does not say so. Raises what MLflow does where it cannot be reached.
    """
    done: dict[str, str] = {}
    for path in records:
        reflection = Reflection(path)
        if (record := reflection.unsent()) is None:
            continue
        with suppress(Timeout), reflection.lock.acquire(timeout=0):  # else a living process sends it
            end = None if record.end else end_of(record)
            try:
                if reflection.send(runs_of(record), end):
                    sent = "the rest of its run was sent to MLflow"
                    done[record.info.key] = f"its MLflow run was closed as {end.state}" if end else sent
            except Refused as error:
                done[record.info.key] = f"MLflow refused it ({_short(error)}); it is kept, and sent next time"
    return done


def _short(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, Refused) and error.__cause__ else error
    said = first_line(error)[:160]
    return f"{type(cause).__name__}: {said}" if str(error).strip() else type(cause).__name__
