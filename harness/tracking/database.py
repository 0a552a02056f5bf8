"""MLflow's database in the home folder: whole or absent, up to date, and with paths of that home."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from harness import atomic
from harness.errors import TrackingError, first_line
from harness.home import Home
from harness.store.database import lock

if TYPE_CHECKING:
    from sqlalchemy import URL

# What marks a run, and an experiment, as ours; early versions marked runs alone.
KEY_TAG, EXPERIMENT_TAG = "harness.key", "harness.experiment"
# Where MLflow keeps absolute addresses of files.
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# Seconds that another program's transaction is waited for: a start waits as long.
_BUSY_S = 10.0
_MOVE = "Move the file away: the next start shows everything again, from the runs' folders."


def prepare(path: Path, home: Home | None) -> None:
    """Make the database, or bring it up to date, in a copy that then takes its place; the caller has the lock.

    MLflow would do either in place, where a kill leaves tables that it can neither use nor finish. Raises TrackingError
    if the file is damaged, locked, another program's, or of a newer MLflow. ``home`` is the home folder that it is in,
    if it is in one.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with closing(_open(path)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            versions = (
                database.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else ()
            )
            version = next(iter(versions), ("",))[0]
            kept = sum(
                database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
                for table in tables & {"runs", "registered_models", "trace_info"}
            )
            if "experiments" in tables:  # MLflow itself makes the one of number 0
                kept += database.execute("SELECT count(*) FROM experiments WHERE experiment_id <> 0").fetchone()[0]
            if version == _versions()[0]:
                if home:
                    _reroot(database, home)
                return
            if tables - {"alembic_version"} and "experiments" not in tables:
                raise TrackingError(f"{path} is another program's database", "Move it away; MLflow's is made there.")
            if version and version not in _versions():
                raise TrackingError(f"{path} was written by a newer MLflow", f"Install that MLflow. Or: {_MOVE}")
            _remove(new)
            if kept:
                with closing(sqlite3.connect(new)) as copy:
                    database.backup(copy)
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise TrackingError(f"{path} is locked by another program", "Close what has it open.") from None
        raise TrackingError(f"{path} cannot be used: {error}", _MOVE) from None
    try:
        _migrate(new, upgrade=bool(kept))
    except Exception as error:  # whatever a migration raises
        _remove(new)
        if isinstance(error, OSError) or not kept:
            raise
        raise TrackingError(f"{path} cannot be brought up to date: {first_line(error)}", _MOVE) from None
    if kept:
        old = path.with_name(f"{path.name}.{version}")
        _remove(old)
        shutil.copyfile(path, old)
        if home:
            with closing(_open(new)) as database:
                _reroot(database, home)
    for rest in ("-journal", "-wal", "-shm"):  # of the file before, which SQLite would play into the new one
        path.with_name(path.name + rest).unlink(missing_ok=True)
    new.replace(path)
    atomic.sync_folder(path.parent)


def forget_connections() -> None:
    """Have MLflow open databases again: it keeps connections to files that a person may have deleted or replaced."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

    for engine in (*Tracking._engine_map.values(), *Registry._engine_map.values()):
        engine.dispose()


def has_tables(url: URL) -> bool:
    """Whether a server's database has all of MLflow's tables."""
    from mlflow.store.db.utils import _all_tables_exist
    from sqlalchemy import NullPool, create_engine

    return bool(_all_tables_exist(create_engine(url, poolclass=NullPool)))  # type: ignore[no-untyped-call]


def make_tables(url: URL, home: Home) -> None:
    """Make MLflow's tables in PostgreSQL, which takes back what a kill interrupts; starts at once would be in each
    other's way.
    """
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import NullPool, create_engine

    with lock(url, home, "mlflow"):
        if not has_tables(url):
            _initialize_tables(create_engine(url, poolclass=NullPool))  # type: ignore[no-untyped-call]


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rwc", uri=True, timeout=_BUSY_S)


def _remove(path: Path) -> None:
    for end in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


@cache
def _versions() -> tuple[str, ...]:
    """Of all databases that the installed MLflow can read or bring up to date, the newest first."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    scripts = ScriptDirectory.from_config(_get_alembic_config(""))  # type: ignore[no-untyped-call]
    return tuple(script.revision for script in scripts.walk_revisions())


def _migrate(path: Path, *, upgrade: bool) -> None:
    """Make all tables, or bring those of an earlier MLflow up to date."""
    from mlflow.store.db.utils import _initialize_tables, _upgrade_db
    from sqlalchemy import NullPool, create_engine

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA synchronous = OFF")  # no other process has it yet
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    migrate: Callable[..., None] = _upgrade_db if upgrade else _initialize_tables
    migrate(engine)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _reroot(database: sqlite3.Connection, home: Home) -> None:
    """Have MLflow find and write files under this home, which may have been moved or copied since they were named.

    An experiment of ours is at ARTIFACTS/STUDY, where ARTIFACTS is the folder of that name in the home it was made in.
    """
    here = home.artifacts.as_uri()
    located = database.execute(
        "SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file:///%' AND (experiment_id IN"
        " (SELECT experiment_id FROM experiment_tags WHERE key = ?) OR experiment_id IN"
        " (SELECT experiment_id FROM runs JOIN tags USING (run_uuid) WHERE key = ?))",
        (EXPERIMENT_TAG, KEY_TAG),
    )
    elsewhere = {str(location).rpartition("/")[0] for (location,) in located} - {here}
    for there in filter(lambda folder: folder.endswith(f"/{home.artifacts.name}"), elsewhere):
        for table, column in _ADDRESSES:
            with suppress(sqlite3.OperationalError):  # this MLflow has no such table
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608
                    (here, len(there) + 1, len(there) + 1, f"{there}/"),
                )
    database.commit()
