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
from harness.store.database import HEARTBEAT_S, PatientStorage


class Lease:
    """Signs of life of one running trial, in the database's own time, so that no machine's clock matters.

    Args:
        study: the trial's.
        trial_id: of the trial in the storage.
    """

    def __init__(self, study: optuna.Study, trial_id: int) -> None:
        self.study, self.trial_id = study, trial_id
        self.ending = False
        self._ended = Event()
        self._thread = Thread(target=self._beat, name=f"lease {trial_id}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def check(self) -> None:
        """Ask the database before anything is published.

        Raises:
            Fenced: the trial is not RUNNING any more.
            StorageLost: the database does not answer.
        """
        state = storage_of(self.study).trial_state(self.trial_id)
        if state != TrialState.RUNNING:
            raise Fenced(f"was declared dead meanwhile (it is {state.name}); this attempt publishes nothing more")

    def check_now(self) -> None:
        """As :meth:`check`, without waiting for a database that is away; nothing while its worker ends the trial.

        Raises:
            Fenced: the trial is not RUNNING any more.
            Exception: the database does not answer.
        """
        if self.ending:
            return
        with storage_of(self.study).patience.suspended():
            self.check()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            beat(self.study, self.trial_id)


def beat(study: optuna.Study, trial_id: int) -> None:
    """One sign of life. During an outage there is none: whoever waits it out is silent for less than is deadly."""
    with suppress(StorageInternalError, DBAPIError):
        storage_of(study).record_heartbeat(trial_id)


def write_attrs(trial: optuna.Trial, attrs: TrialAttrs) -> None:
    """As ``trial.set_user_attr`` for each that differs from its default, in one transaction: all are there, or none."""
    stored = attrs.stored()
    storage_of(trial.study).set_trial_user_attrs(trial._trial_id, stored)
    trial._cached_frozen_trial.user_attrs.update(stored)


def storage_of(study: optuna.Study) -> PatientStorage:
    """The storage beneath Optuna's cache."""
    backend = getattr(study._storage, "_backend", study._storage)
    assert isinstance(backend, PatientStorage)
    return backend
