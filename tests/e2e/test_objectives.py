"""A study of several objectives from its file to its report, and the audit of its best trials."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest

from harness.api.scoring import audit_study
from harness.errors import DataError
from harness.findings.ranking import pareto_front
from harness.home import Home
from harness.tracking.client import client_for
from tests.conftest import blob_files, sharing_weights
from tests.e2e.test_sweep import Here, Project, wait_for
from tests.faults.checks import QUICK

STUDY = f'objectives = ["score", "seconds", "recall"]\n{QUICK}'


@pytest.fixture(scope="module")
def project(tmp_path_factory, weights_home: Home) -> Project:

    folder = tmp_path_factory.mktemp("objectives")
    images = blob_files(folder / "images", 40)
    made = Here(folder, sharing_weights(folder, weights_home), images)
    (folder / "search_spaces" / "tiny.toml").write_text(STUDY)
    made.env |= {"HARNESS_CHECKPOINT_S": "0"}
    process = made.start("sweep")
    wait_for(process, r"trial 1.* saved|trial 1: ")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    made.run("sweep")
    return made


def report_of(project: Project) -> str:
    folder = project.folder / "reports" / "tiny"
    assert "<p>|" not in (folder / "report.html").read_text(), "a table that no reader of Markdown takes for one"
    return (folder / "report.md").read_text()


def test_every_objective_has_its_value_though_everything_was_killed(project):
    record = project.record()
    finished = [trial for trial in record.trials if trial.state == "COMPLETE"]
    assert sum(trial.state in ("COMPLETE", "PRUNED") for trial in record.trials) == 4
    for trial in finished:
        score, seconds, recall = trial.values
        assert score == trial.attrs.scores["fid_mnv2_24"]
        assert recall == trial.attrs.scores["recall_mnv2_24"]
        assert 0 <= recall <= 1
        curve = json.loads((project.home.root / trial.attrs.folder / "curve.json").read_text())
        kimg = [0.0, *(row["kimg"] for row in curve)]
        spent = sum(
            1000 * (row["kimg"] - before) / row["images_per_s"] for before, row in zip(kimg, curve, strict=False)
        )
        assert seconds == pytest.approx(spent, abs=0.01)
        assert list(trial.attrs.rung_seconds) == [100, 400]
        assert trial.attrs.rung_seconds[400] == pytest.approx(seconds, abs=0.02)
        assert set(trial.attrs.watched[400]) == {"sample_distance", "feature_variance"}


def test_the_report_has_the_front_and_mlflow_the_seconds_and_the_watch(project):
    record, text = project.record(), report_of(project)
    section = text.split("## Trade-offs")[1].split("\n## ")[0]
    for trial in pareto_front(record):
        assert f"| {trial.number} |" in section
    assert "training time (s, lower is better)" in section
    assert "dominated them at a rung in the score and seconds." in section
    assert "recall of 24 images by MobileNetV2's features (higher is better)" in section
    assert not (project.folder / "reports" / "tiny" / "tradeoff.png").exists(), "a table says as much of four trials"
    assert "objectives" in json.loads((project.folder / "reports" / "tiny" / "report.json").read_text())["spec"]
    client = client_for(project.home)
    runs = client.search_runs([record.attrs.mlflow_experiment], "tags.trial_state = 'COMPLETE'")
    assert runs
    for run in runs:
        assert run.data.metrics["train_s"] > 0
        assert [point.step for point in client.get_metric_history(run.info.run_id, "sample_distance")] == [100, 400]
        assert math.isfinite(run.data.metrics["feature_variance"])


def test_the_best_trials_are_audited_once_and_the_report_says_what_was_found(project):
    assert "measures what is missing" in report_of(project)
    best = project.record().best
    assert "2 trainings audited" in project.run("audit", TOP="2")
    text = report_of(project)
    section = text.split("## Health of the best trainings")[1].split("\n## ")[0]
    assert f"| trial {best.number} |" in section
    assert "![Samples and their nearest training images](nearest.png)" in section
    assert (project.folder / "reports" / "tiny" / "nearest.png").is_file()
    folder = project.home.root / best.attrs.folder
    found = json.loads((folder / "audit.json").read_text())
    assert found["score"] == pytest.approx(best.value, rel=1e-5)
    assert found["batch_score"] > 0

    assert "0 trainings audited" in project.run("audit", TOP="2")
    (folder / "audit.json").write_text('{"score": 1')  # as a crash would never leave it
    assert "1 training audited" in project.run("audit", TOP="2")
    assert json.loads((folder / "audit.json").read_text()) == found


def test_an_audit_of_what_is_not_there_is_a_sentence(project, tmp_path):
    output = project.run("audit", "other", code=1)
    assert "no study 'other' has been started" in output
    others = blob_files(tmp_path / "others", 40, seed=3)
    output = project.run("audit", TOP="4", DATA=str(others), code=1)
    assert "was started on other images" in output


def test_an_audit_with_other_versions_is_refused_not_done_in_vain(project, monkeypatch):
    monkeypatch.setattr("harness.scoring.scorer.versions", lambda: {"torch": "0"})
    with pytest.raises(DataError, match="scored under another protocol"):
        audit_study(
            "tiny", project.home, top=4, source=project.images, device="cpu", on_images=lambda *_: None,
            say=lambda text: None,
        )  # fmt: skip
