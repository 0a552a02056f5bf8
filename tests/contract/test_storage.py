"""Optuna's own contract of a storage, kept by ours on SQLite and on PostgreSQL."""

from __future__ import annotations

import pickle

import pytest
from optuna.testing.pytest_storages import StorageTestCase

from harness.home import Home
from harness.store.database import PatientStorage, open_storage


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def opened(request, tmp_path_factory) -> PatientStorage:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("HARNESS_STORAGE", raising=False)
        if request.param == "postgresql":
            patched.setenv("HARNESS_STORAGE", request.getfixturevalue("postgres").database())
        return open_storage(Home(tmp_path_factory.mktemp("storage") / "runs"))


class TestPatientStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, opened) -> PatientStorage:
        """Without studies: tables take longer to create than all that a test does."""
        for study in opened.get_all_studies():
            opened.delete_study(study._study_id)
        return opened

    def test_pickle_storage(self, storage):
        """Ours stays in its process: it says to a person what it waits for. Each process opens its own."""
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            pickle.dumps(storage)
