"""What an outage of the database is, and waiting until it is over."""

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
from harness.store.address import describe_address, without_password

_LONGEST_PAUSE_S = 2.0
# Errors of SQLite that pass by themselves or when there is room on the disk again; no other error of SQLite does.
_SQLITE_OUTAGES = ("locked", "busy", "disk is full", "disk I/O error")
# Errors of SQLite and PostgreSQL about missing rights to write.
_FORBIDDEN = ("readonly database", "read-only transaction", "permission denied")
# Errors of PostgreSQL that waiting does not help.
_REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")

R = TypeVar("R")


def grace_s() -> float:
    """Seconds to wait for a database that is away: ``HARNESS_GRACE_S``, 300 by default.

    Raises:
        UsageError: HARNESS_GRACE_S is not a number of seconds.
    """
    return seconds_from_environment("HARNESS_GRACE_S", 300.0)


class Outages:
    """Waits while the database is away, up to the grace period, and says so once.

    Args:
        url: of the database, for messages.
        grace_s: the grace period.
        say: called with a line when waiting begins and when it ends.
        stop: whether to give up earlier; called during an outage.
    """

    def __init__(self, url: URL, grace_s: float, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
        self.url, self.grace_s, self.say, self.stop = url, grace_s, say, stop
        self.name = describe_address(url)
        self._thread = local()

    @contextmanager
    def not_waiting(self) -> Iterator[None]:
        """Inside, an outage is an error for this thread: the holder of a lock lets go of it and repeats the whole."""
        self._thread.waits = False
        try:
            yield
        finally:
            self._thread.waits = True

    def wait_out(self, call: Callable[[bool], R]) -> R:
        """The result of ``call(repeated)``, which is repeated until the database answers.

        Raises:
            StorageLost: the outage lasted longer than the grace period, or ``stop()`` was true during it.
            StorageError: the database may be read, but not written.
        """
        began, pause, repeated = 0.0, 0.05, False
        while True:
            try:
                result = call(repeated)
            except (StorageInternalError, DBAPIError) as error:
                if is_forbidden(error):
                    raise StorageError(
                        f"{self.name} cannot be written: {self._first_line(error)}",
                        "Let this user write it: the file and its folder, or the tables of a server.",
                    ) from None
                if not is_outage(error) or not getattr(self._thread, "waits", True):
                    raise
                now = time.monotonic()
                if not repeated:
                    began = now
                    self.say(f"{self.name} does not answer; waiting up to {self.grace_s:g} s")
                repeated = True
                if now - began > self.grace_s or self.stop():
                    raise StorageLost(
                        f"{self.name} did not answer for {now - began:.0f} s: {self._first_line(error)}",
                        "What was trained is saved. Start again when the database is back, and the sweep continues.",
                    ) from None
                # Not time.sleep: nothing here may depend on how a signal ends it.
                Event().wait(min(pause, _LONGEST_PAUSE_S))
                pause *= 2
                continue
            if repeated:
                self.say(f"{self.name} is back after {time.monotonic() - began:.1f} s")
            return result

    def _first_line(self, error: BaseException) -> str:
        cause = error.__cause__ or error
        return without_password(str(getattr(cause, "orig", None) or cause).strip().splitlines()[0], self.url)


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
