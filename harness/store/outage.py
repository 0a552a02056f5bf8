"""What an outage of the database is, and how long it is waited out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, local
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from harness.errors import StorageError, StorageLost
from harness.home import seconds_from_environment
from harness.store.address import blotted, shown

_LONGEST_PAUSE_S = 2.0
# Errors of SQLite that pass by themselves or when somebody makes room; every other one of its kind does not.
_SQLITE_OUTAGES = ("locked", "busy", "disk is full", "disk I/O error")
# Of SQLite and of PostgreSQL: who may not write, now or ever.
_FORBIDDEN = ("readonly database", "read-only transaction", "permission denied")
# What PostgreSQL says to those whom waiting does not help.
_REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")

R = TypeVar("R")


def grace_s() -> float:
    """Seconds that an outage of the database is waited out: ``HARNESS_GRACE_S``, five minutes unless it says otherwise.

    Raises:
        UsageError: it is no such number.
    """
    return seconds_from_environment("HARNESS_GRACE_S", 300.0)


class Patience:
    """Waits while the database is away, up to the grace period, and says so once.

    Args:
        url: of the database, for messages.
        seconds: the grace period.
        say: told when waiting begins and ends.
        stop: asked whether to give up earlier.
    """

    def __init__(self, url: URL, seconds: float, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
        self.url, self.seconds, self.say, self.stop = url, seconds, say, stop
        self._impatient = local()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, this thread does not wait: what holds a lock gives up and is repeated as a whole."""
        self._impatient.now = True
        try:
            yield
        finally:
            self._impatient.now = False

    def wait_out(self, call: Callable[[bool], R]) -> R:
        """The result of ``call``, repeated until the database answers; it is told whether it is a repetition.

        Raises:
            StorageLost: the outage lasted longer than the grace period, or ``stop()`` said so during one.
            StorageError: the database may be read, not written.
        """
        began, pause, repeated = 0.0, 0.05, False
        while True:
            try:
                result = call(repeated)
            except (StorageInternalError, DBAPIError) as error:
                if is_forbidden(error):
                    raise StorageError(
                        f"{shown(self.url)} cannot be written: {self._first_line(error)}",
                        "Let this user write it: the file and its folder, or the tables of a server.",
                    ) from None
                if not is_outage(error) or getattr(self._impatient, "now", False):
                    raise
                now = time.monotonic()
                if not repeated:
                    began = now
                    self.say(f"{shown(self.url)} does not answer; waiting up to {self.seconds:g} s")
                repeated = True
                if now - began > self.seconds or self.stop():
                    raise StorageLost(
                        f"{shown(self.url)} did not answer for {now - began:.0f} s: {self._first_line(error)}",
                        "What was trained is saved. Start again when the database is back: it goes on from there.",
                    ) from None
                # Not time.sleep: nothing here may depend on how a signal ends it.
                Event().wait(min(pause, _LONGEST_PAUSE_S))
                pause *= 2
                continue
            if repeated:
                self.say(f"{shown(self.url)} is back after {time.monotonic() - began:.1f} s")
            return result

    def _first_line(self, error: BaseException) -> str:
        cause = error.__cause__ or error
        return blotted(str(getattr(cause, "orig", None) or cause).strip().splitlines()[0], self.url)


def is_forbidden(error: BaseException) -> bool:
    """Whether the database refused to be written."""
    cause = _of_database(error)
    return cause is not None and any(text in str(cause.orig) for text in _FORBIDDEN)


def is_outage(error: BaseException) -> bool:
    """Whether the database was away, locked or full: what time can heal. Not: a wrong address, statement or value."""
    cause = _of_database(error)
    if cause is None:
        return False
    message = str(cause.orig)
    if type(cause.orig).__module__ == "sqlite3":
        return any(text in message for text in _SQLITE_OUTAGES)
    if any(text in message for text in _REFUSALS):
        return False
    return cause.connection_invalidated or isinstance(cause, OperationalError | InterfaceError)


def _of_database(error: BaseException) -> DBAPIError | None:
    cause = error if isinstance(error, DBAPIError) else error.__cause__
    return cause if isinstance(cause, DBAPIError) else None
