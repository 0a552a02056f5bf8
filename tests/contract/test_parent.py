"""The study's run in MLflow, opened while the server fails."""

from __future__ import annotations

import pytest

from harness.errors import TrackingError
from harness.spec.files import parse_study
from harness.store.database import write_study_attrs
from harness.store.records import StudyAttrs
from harness.store.studies import open_study
from harness.store.trials import Trials
from harness.sweep.reconcile import ParentRun
from tests.conftest import TINY_STUDY
from tests.servers import Gateway

SPEC = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")


@pytest.mark.parametrize("spared", [0, 1, 2, 3])
def test_a_server_that_fails_between_two_answers_stops_a_new_study_with_a_sentence_and_a_known_one_not_at_all(
    home, mlflow_server, monkeypatch, spared
):
    gateway = Gateway(mlflow_server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gateway.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trials, said = Trials(open_study(SPEC, home), SPEC, home), []
    try:
        gateway.mode, gateway.spared = "500", spared
        with pytest.raises(TrackingError, match="MLflow does not answer: .*500"):
            ParentRun(trials, home, "cpu", said.append).open()
        gateway.mode = "pass"
        parent = ParentRun(trials, home, "cpu", said.append).open()
        known = StudyAttrs(mlflow_experiment=parent.tracker.experiment_id, mlflow_parent=parent.run_id)
        write_study_attrs(trials.study, known)
        assert said == []
        gateway.mode, gateway.spared = "500", spared
        again = ParentRun(trials, home, "cpu", said.append).open()
        assert (again.run_id, again.tracker.experiment_id) == (parent.run_id, parent.tracker.experiment_id)
        (line,) = said
        assert line.endswith("the sweep continues, and MLflow gets everything when it is back")
    finally:
        gateway.close()
