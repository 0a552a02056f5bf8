"""A worker's hold on its trial: signs of life in the database, and the fence for one that was declared dead."""

from __future__ import annotations

from contextlib import suppress
from threading import Event, Thread

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError

from harness.errors import Fenced
from harness.store.attrs import TrialAttrs
from harness.store.database import HEARTBEAT_S, PatientStorage, storage_of
from harness.store.optuna_private import id_of, remember_user_attrs


class Lease:
    """Signs of life of one running trial, by the database's clock: no machine's own matters.

    Args:
        trial: that the worker runs.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.storage, self.trial_id = storage_of(trial.study), id_of(trial)
        self.ending = False
        self._ended = Event()
        self._thread = Thread(target=self._beat, name=f"lease {self.trial_id}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def check(self) -> None:
        """Make sure that the trial still belongs to this worker, before anything is published.

        Raises:
            Fenced: the trial is not RUNNING any more.
            StorageLost: the database does not answer.
        """
        state = self.storage.trial_state(self.trial_id)
        if state != TrialState.RUNNING:
            raise Fenced(f"was declared dead meanwhile (it is {state.name}); this attempt publishes nothing more")

    def check_now(self) -> None:
        """As :meth:`check`, without waiting for a database that is away; does nothing while the worker ends the trial.

        Raises:
            Fenced: the trial is not RUNNING any more.
            Exception: the database does not answer.
        """
        if self.ending:
            return
        with self.storage.outages.not_waiting():
            self.check()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            beat(self.storage, self.trial_id)


def beat(storage: PatientStorage, trial_id: int) -> None:
    """One sign of life; none during an outage, which ends before its silence counts as death."""
    with suppress(StorageInternalError, DBAPIError):
        storage.record_heartbeat(trial_id)


def write_attrs(trial: optuna.Trial, attrs: TrialAttrs) -> None:
    """Write the given attributes in one transaction: all are there, or none.

    Raises:
        UpdateFinishedTrialError: the trial has ended.
    """
    stored = attrs.stored()
    storage_of(trial.study).set_trial_user_attrs(id_of(trial), stored)
    remember_user_attrs(trial, stored)
