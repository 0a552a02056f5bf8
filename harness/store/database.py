"""The Optuna database: its storage, and who may write what nobody else may at that moment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialModel, TrialUserAttributeModel
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import TrialState
from sqlalchemy import URL, NullPool, create_engine, select, text
from sqlalchemy.exc import SQLAlchemyError

from harness.errors import StorageError
from harness.home import Home
from harness.store.address import blotted, database_url, shown
from harness.store.outage import Patience, grace_s

# Seconds that a writer waits for another one's SQLite transaction.
_BUSY_S = 60
# A holder of the study's lock who says nothing for this long (a laptop that sleeps) loses it to the others.
_LOCK_IDLE_S = 120
# A server that is stopped mid-call is noticed by these (libpq's names; seconds and a count).
_POSTGRES = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}

R = TypeVar("R")


def _patient(method: Callable[..., R]) -> Callable[..., R]:
    """A method that may be repeated, with patience."""

    @wraps(method)
    def call(self: PatientStorage, *args: Any, **kwargs: Any) -> R:
        return self.patience.wait_out(lambda repeated: method(self, *args, **kwargs))

    return call


class PatientStorage(RDBStorage):
    """Optuna's storage, whose idempotent calls wait for the database to come back.

    Creating a trial is not among them: whether it happened cannot be known, so :class:`harness.store.trials.Trials`
    repeats it as a whole, and what a lost answer left behind is failed as a trial without a worker.
    """

    def __init__(self, url: URL, patience: Patience, dead_after_s: float) -> None:
        connect_args: dict[str, Any] = dict(_POSTGRES)
        if url.get_backend_name() == "sqlite":
            connect_args = {"timeout": _BUSY_S}
        # pre_ping: a connection that the server closed meanwhile is replaced before it is used.
        kwargs: dict[str, Any] = {"connect_args": connect_args, "pool_pre_ping": True}
        super().__init__(url.render_as_string(hide_password=False), engine_kwargs=kwargs)
        self.patience = patience
        self.heartbeat_interval = HEARTBEAT_S
        self.grace_period = round(dead_after_s)

    def set_trial_user_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Several attributes in one transaction.

        Raises:
            UpdateFinishedTrialError: the trial has ended.
        """

        def call(repeated: bool) -> None:
            with _create_scoped_session(self.scoped_session, True) as session:
                for key, value in attrs.items():
                    self._set_trial_attr_without_commit(session, TrialUserAttributeModel, trial_id, key, value)

        self.patience.wait_out(call)

    def trial_state(self, trial_id: int) -> TrialState:
        """A trial's state alone, for a quarter of what reading the whole trial takes.

        Raises:
            KeyError: there is no such trial.
        """
        return self.patience.wait_out(lambda repeated: self._trial_state(trial_id))

    def _trial_state(self, trial_id: int) -> TrialState:
        with self.engine.connect() as connection:
            asked = select(TrialModel.state).where(TrialModel.trial_id == trial_id)
            found: TrialState | None = connection.execute(asked).scalar_one_or_none()
        if found is None:
            raise KeyError(f"there is no trial with the id {trial_id}")
        return found

    def get_heartbeat_interval(self) -> int | None:
        """None: heartbeats are the lease's, not those of ``Study.optimize``, which is not used."""
        return None

    get_study_id_from_name = _patient(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _patient(RDBStorage.get_study_name_from_id)
    get_study_directions = _patient(RDBStorage.get_study_directions)
    get_study_user_attrs = _patient(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _patient(RDBStorage.get_study_system_attrs)
    get_all_studies = _patient(RDBStorage.get_all_studies)
    set_study_user_attr = _patient(RDBStorage.set_study_user_attr)
    set_study_system_attr = _patient(RDBStorage.set_study_system_attr)
    get_trial = _patient(RDBStorage.get_trial)
    _get_trials = _patient(RDBStorage._get_trials)
    _set_trial_param = _patient(RDBStorage._set_trial_param)
    set_trial_user_attr = _patient(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _patient(RDBStorage.set_trial_system_attr)
    set_trial_intermediate_value = _patient(RDBStorage.set_trial_intermediate_value)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's; a repetition that finds the trial in the very state that it was to have did happen."""
        inherited = super().set_trial_state_values

        def call(repeated: bool) -> bool:
            try:
                return inherited(trial_id, state, values)
            except UpdateFinishedTrialError:
                found = RDBStorage.get_trial(self, trial_id) if repeated else None
                if found is None or found.state != state or found.values != (list(values) if values else None):
                    raise
                return True

        return self.patience.wait_out(call)


# Seconds between a worker's signs of life.
HEARTBEAT_S = 15


def dead_after(grace: float) -> float:
    """Seconds without a sign of life after which a worker of another machine counts as dead.

    Longer than any outage that is waited out: no living worker is silent for longer than that.
    """
    return grace + 4 * HEARTBEAT_S


def open_storage(
    home: Home,
    *,
    grace: float = 5.0,
    say: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> PatientStorage:
    """The storage; its tables are created by the first process, under a lock.

    Args:
        home: the home folder.
        grace: seconds that an outage is waited out; short where a person waits for an answer.
        say: told of an outage.
        stop: asked during an outage whether to give up.

    Raises:
        StorageLost: the database does not answer within the grace period.
        StorageError: it is not one that can be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = database_url(home)
    patience = Patience(url, grace, say, stop)
    lock = StudyLock(url, home, "tables")

    def create(repeated: bool) -> PatientStorage:
        with lock.held():
            return PatientStorage(url, patience, dead_after(grace_s()))

    try:
        return patience.wait_out(create)
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        first = blotted(str(getattr(error, "orig", None) or error).splitlines()[0], url)
        hint = "If it is damaged, restore it from a backup, or move it away to begin anew."
        if url.get_backend_name() != "sqlite":
            hint = "Check HARNESS_STORAGE and the rights of its user."
        raise StorageError(f"{shown(url)} cannot be opened: {first}", hint) from None


class StudyLock:
    """One writer at a time, among all processes that use the database: a file's lock, or PostgreSQL's advisory lock.

    Either is released by the operating system or by the server where its holder dies.
    """

    def __init__(self, url: URL, home: Home, name: str) -> None:
        self.url, self.home, self.name = url, home, name

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock and hold it.

        Raises:
            DBAPIError: the server went away.
        """
        if self.url.get_backend_name() == "sqlite":
            database = Path(str(self.url.database))
            if database.parent == self.home.root:
                database.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(database.with_name(f".{database.name}-{self.name}.lock")):
                yield
            return
        engine = create_engine(self.url, poolclass=NullPool, connect_args=_POSTGRES)
        with engine.connect() as connection, connection.begin():
            connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_LOCK_IDLE_S}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": self._key()})
            yield
            # Whoever lost the lock meanwhile learns it here.
            connection.execute(text("SELECT 1"))

    def _key(self) -> int:
        sha256 = hashlib.sha256(f"dcgan-sweep-harness {self.name}".encode()).digest()
        return int.from_bytes(sha256[:8], signed=True)
