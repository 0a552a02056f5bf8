"""Where the Optuna database is, its address in messages, and waiting while it is away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, local
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError

from harness.errors import ESCAPES, StorageError, StorageLost, UsageError, first_line
from harness.home import Home, expanded, seconds_from_environment
from harness.machine.imports import require

_ADDRESSES = (
    "Use postgresql+psycopg://USER@HOST/DATABASE with the password in PGPASSWORD, or sqlite:////PATH/optuna.db."
)
_LONGEST_PAUSE_S = 2.0
# The errors of SQLite that can pass: by themselves, or when the disk has room again.
_SQLITE_OUTAGES = ("locked", "busy", "disk is full", "disk I/O error")
# Errors of SQLite and PostgreSQL about missing rights to write.
_FORBIDDEN = ("readonly database", "permission denied")
# PostgreSQL's words after a failover, until a server that takes writes is reached.
_READ_ONLY = "read-only transaction"
# Errors of PostgreSQL for which waiting does not help.
_REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")

_RESTORE = "Restore it from a backup and start again; or start from scratch: trained models stay in the runs' folders."

R = TypeVar("R")


def database_url(home: Home) -> URL:
    """``HARNESS_STORAGE``, or the SQLite file of the home folder. Messages leave it out: it may contain a password."""
    address = os.environ.get("HARNESS_STORAGE")
    if not address:
        return make_url(home.optuna_url)
    url = read_address(address)
    if url is None:
        raise UsageError("HARNESS_STORAGE is not a database's address", f"{_ADDRESSES} {ESCAPES}")
    if url.drivername == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise UsageError("HARNESS_STORAGE: SQLite needs a file, or nothing is kept", _ADDRESSES)
        return url.set(database=str(expanded(Path(url.database))))
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise UsageError(f"HARNESS_STORAGE: {url.drivername} is not supported", _ADDRESSES)
    require("psycopg[binary]", "PostgreSQL (HARNESS_STORAGE)", "postgresql")
    return url.set(drivername="postgresql+psycopg")


def read_address(text: str) -> URL | None:
    """What an address says of a database; None where it is not one, or part of a password could be taken for a host."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # the latter of its port
        return None
    return None if text.count("@") > 1 and url.get_backend_name() != "sqlite" else url


def describe_address(url: URL) -> str:
    """The address for messages and logs: no user, no password, no option."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return f"{url.get_backend_name()} database {url.database} on {url.host or 'this machine'}"


def drivers_line(error: BaseException, url: URL) -> str:
    """The first line of the driver's error, with ``***`` for passwords of the address."""
    message = first_line(getattr(error, "orig", None) or error)
    secrets = {str(url.password or "")}
    secrets |= {value for name, value in url.query.items() if "password" in name and isinstance(value, str)}
    for secret in secrets - {""}:
        message = message.replace(secret, "***")
    return message


def grace_s() -> float:
    """Seconds to wait for a database that is away: ``HARNESS_GRACE_S``, 300 by default."""
    return seconds_from_environment("HARNESS_GRACE_S", 300.0)


class Outages:
    """Waits while the database is away, up to the grace period, and reports the beginning and the end."""

    def __init__(self, url: URL, grace_s: float, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
        self.url, self.grace_s, self.say, self.stop = url, grace_s, say, stop
        self.name = describe_address(url)
        # Set once the database was opened, and so was usable: drops its connections.
        self.reconnect: Callable[[], None] | None = None
        self._thread = local()

    @contextmanager
    def not_waiting(self) -> Iterator[None]:
        """Inside, an outage is an error for this thread: the holder of a lock must release it and start again."""
        self._thread.waits = False
        try:
            yield
        finally:
            self._thread.waits = True

    def wait_out(self, call: Callable[[bool], R]) -> R:
        """The result of ``call(repeated)``, which is repeated until the database answers.

        Raises StorageLost after the grace period, or when ``stop()`` is true; StorageError if the database cannot be
        written, or was dropped or damaged since it was opened.
        """
        began, pause, repeated = 0.0, 0.05, False
        while True:
            try:
                result = call(repeated)
            except (StorageInternalError, DBAPIError) as error:
                cause = error if isinstance(error, DBAPIError) else error.__cause__
                said = drivers_line(error.__cause__ or error, self.url)
                exists = self.url.get_backend_name() != "sqlite" or Path(str(self.url.database)).exists()
                if isinstance(cause, DBAPIError) and any(text in str(cause.orig) for text in _FORBIDDEN) and exists:
                    raise StorageError(
                        f"{self.name} cannot be written: {said}",
                        "Let this user write it: the file and its folder, or the tables of a server.",
                    ) from None
                if not _is_outage(cause):
                    if self.reconnect is None or not isinstance(cause, DBAPIError) or isinstance(cause, IntegrityError):
                        raise
                    raise StorageError(f"{self.name} was removed, emptied or damaged: {said}", _RESTORE) from None
                if not getattr(self._thread, "waits", True):
                    raise
                now = time.monotonic()
                if not repeated:
                    began = now
                    state = "is read-only" if _READ_ONLY in said else "does not answer"
                    self.say(f"{self.name} {state}; waiting up to {self.grace_s:g} s")
                repeated = True
                if self.reconnect and _READ_ONLY in said:  # open connections stay read-only
                    self.reconnect()
                if now - began > self.grace_s or self.stop():
                    was = "cannot be written" if _READ_ONLY in said else f"did not answer for {now - began:.0f} s"
                    raise StorageLost(
                        f"{self.name} {was}: {said}",
                        "What was trained is saved. Start again when the database is back.",
                    ) from None
                # Not time.sleep, which a signal may end.
                Event().wait(min(pause, _LONGEST_PAUSE_S))
                pause *= 2
                continue
            if repeated:
                self.say(f"{self.name} is back after {time.monotonic() - began:.1f} s")
            return result


def _is_outage(cause: BaseException | None) -> bool:
    """Whether waiting can help: the database was away, locked or full. It cannot for a wrong address or statement."""
    if not isinstance(cause, DBAPIError):
        return False
    message = str(cause.orig)
    if type(cause.orig).__module__ == "sqlite3":
        return any(text in message for text in _SQLITE_OUTAGES)
    if any(text in message for text in _REFUSALS):
        return False
    return _READ_ONLY in message or cause.connection_invalidated or isinstance(cause, OperationalError | InterfaceError)
