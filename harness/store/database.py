"""The Optuna database: its storage, and the lock under which one process at a time changes a study."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import URL, NullPool, create_engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from harness.errors import StorageError
from harness.home import Home
from harness.store.connection import Outages, database_url, describe_address, drivers_line, grace_s
from harness.store.optuna_private import CALLED_BY_CACHE, set_trial_user_attrs, trial_state, uncached_storage
from harness.store.records import StudyAttrs

R = TypeVar("R")

# Seconds between a worker's signs of life.
HEARTBEAT_S = 15
# A column of each of these tables in every version of Optuna.
_COLUMNS = {"studies": "study_name", "trials": "study_id"}
# Seconds that a writer waits for another one's SQLite transaction.
_BUSY_S = 60
# The holder of the study's lock loses it after this long a silence (a sleeping laptop).
_LOCK_IDLE_S = 120
# With these, libpq notices a server that stops in mid-call (seconds and a count).
_POSTGRES = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


class PatientStorage(RDBStorage):
    """Optuna's storage, whose idempotent calls wait for the database to come back.

    Creating a trial is not idempotent: if the answer is lost, it may have happened. ``Trials`` repeats that as a whole;
    a trial that was left behind has no worker and is failed.
    """

    def __init__(self, url: URL, outages: Outages, dead_after_s: float) -> None:
        connect_args = {"timeout": _BUSY_S} if url.get_backend_name() == "sqlite" else _POSTGRES
        # pre_ping: replace connections that the server has closed. max_overflow: no lane or lease waits for the
        # connection of another one.
        kwargs: dict[str, Any] = {"connect_args": connect_args, "pool_pre_ping": True, "max_overflow": -1}
        super().__init__(url.render_as_string(hide_password=False), engine_kwargs=kwargs)
        self.outages = outages
        self.heartbeat_interval = HEARTBEAT_S
        self.grace_period = round(dead_after_s)

    def set_trial_user_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        self.outages.wait_out(lambda repeated: set_trial_user_attrs(self, trial_id, attrs))

    def trial_state(self, trial_id: int) -> TrialState:
        return self.outages.wait_out(lambda repeated: trial_state(self, trial_id))

    def get_heartbeat_interval(self) -> int | None:
        """None: ``Lease`` sends heartbeats; those of ``Study.optimize`` are not used."""
        return None

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's; a repeated call that finds the wanted state succeeded the first time."""
        inherited = super().set_trial_state_values

        def call(repeated: bool) -> bool:
            try:
                return inherited(trial_id, state, values)
            except UpdateFinishedTrialError:
                ended = RDBStorage.get_trial(self, trial_id) if repeated else None
                if ended is None or ended.state != state or ended.values != (list(values) if values else None):
                    raise
                return True

        return self.outages.wait_out(call)


def _waiting(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, repeated after an outage."""

    @wraps(method)
    def call(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self.outages.wait_out(lambda repeated: method(self, *args, **kwargs))

    return call


_IDEMPOTENT = (
    *("get_study_id_from_name", "get_study_name_from_id", "get_study_directions", "get_all_studies"),
    *("get_study_user_attrs", "get_study_system_attrs", "set_study_user_attr", "set_study_system_attr"),
    *("get_trial", "set_trial_user_attr", "set_trial_system_attr", "set_trial_intermediate_value"),
    *CALLED_BY_CACHE,
)
for _name in _IDEMPOTENT:
    setattr(PatientStorage, _name, _waiting(getattr(RDBStorage, _name)))


def dead_after(grace: float) -> float:
    """Seconds of silence after which a worker of another machine counts as dead; a living one is never so silent."""
    return grace + 4 * HEARTBEAT_S


def open_storage(
    home: Home,
    *,
    grace: float = 5.0,
    say: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> PatientStorage:
    """The storage; its tables are created by the first process, under a lock.

    ``grace``: seconds to wait during an outage, few if a person waits for an answer; after them StorageLost is raised.
    Any other StorageError means that the database cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = database_url(home)
    outages = Outages(url, grace, say, stop)

    def create(repeated: bool) -> PatientStorage:
        with lock(url, home, "tables"):
            _refuse_foreign(url)
            return PatientStorage(url, outages, dead_after(grace_s()))

    try:
        storage = outages.wait_out(create)
        outages.reconnect = storage.engine.dispose
        return storage
    except (SQLAlchemyError, StorageInternalError, RuntimeError, sqlite3.DatabaseError) as error:
        hint = "If it is damaged, restore it from a backup, or move it away to start from scratch."
        if url.get_backend_name() != "sqlite":
            hint = "Check HARNESS_STORAGE and the rights of its user."
        raise StorageError(f"{describe_address(url)} cannot be opened: {drivers_line(error, url)}", hint) from None


def _refuse_foreign(url: URL) -> None:
    """Refuse a database whose tables have Optuna's names but not its columns, and a SQLite file of other tables."""
    is_file = url.get_backend_name() == "sqlite"
    if is_file and not Path(str(url.database)).is_file():
        return
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": _BUSY_S} if is_file else _POSTGRES)
    with engine.connect() as connection:
        inspector = inspect(connection)
        tables = set(inspector.get_table_names())
        columns = {table: {column["name"] for column in inspector.get_columns(table)} for table in tables & {*_COLUMNS}}
    if (is_file and tables and "studies" not in tables) or any(_COLUMNS[name] not in columns[name] for name in columns):
        raise StorageError(
            f"{describe_address(url)} is another program's database", "Move it away, or set HARNESS_STORAGE."
        )


def storage_of(study: optuna.Study) -> PatientStorage:
    """The storage beneath Optuna's cache."""
    storage = uncached_storage(study)
    assert isinstance(storage, PatientStorage)
    return storage


def write_study_attrs(study: optuna.Study, attrs: StudyAttrs) -> None:
    """Write each given attribute that differs from what is stored."""
    known = study.user_attrs
    for name, value in attrs.stored().items():
        if name not in known or known[name] != value:
            study.set_user_attr(name, value)


@contextmanager
def lock(url: URL, home: Home, name: str) -> Iterator[None]:
    """Hold a lock among all processes that use the database: a file's lock, or PostgreSQL's advisory lock.

    The operating system or the server releases it when its holder dies. A DBAPIError means that the server is away.
    """
    if url.get_backend_name() == "sqlite":
        database = Path(str(url.database))
        if database.parent == home.root:
            database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(database.with_name(f".{database.name}-{name}.lock")):
            yield
        return
    key = int.from_bytes(hashlib.sha256(f"dcgan-sweep-harness {name}".encode()).digest()[:8], signed=True)
    engine = create_engine(url, poolclass=NullPool, connect_args=_POSTGRES)
    with engine.connect() as connection, connection.begin():
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_LOCK_IDLE_S}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        yield
        connection.execute(text("SELECT 1"))  # fails if the lock was lost meanwhile


def locked(storage: PatientStorage, home: Home, study: str, action: Callable[[], R]) -> R:
    """Run the action under a study's lock; after an outage, run it again under a new lock."""

    def attempt(repeated: bool) -> R:
        with lock(storage.outages.url, home, f"study-{study}"), storage.outages.not_waiting():
            return action()

    return storage.outages.wait_out(attempt)
