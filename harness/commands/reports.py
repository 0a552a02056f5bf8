"""Writing a study's report and hanging it on its run."""

from __future__ import annotations

from pathlib import Path

from harness.home import Home


def write_report(study_name: str, home: Home) -> Path:
    """Write ``reports/STUDY`` from the database, and hang it on the study's parent run in MLflow."""
    from harness.report.render import build_report
    from harness.sweep.analysis import EVALUATOR, importances
    from harness.sweep.storage import load_study as load_started
    from harness.sweep.storage import to_record
    from harness.tracking.mlflow import MlflowTracker, client_for, open_experiment

    study = load_started(study_name, home)
    record = to_record(study)
    out = Path("reports") / study_name
    path = build_report(record, home.root, out, importances(study), EVALUATOR)
    client = client_for(home)
    tracker = MlflowTracker(client, open_experiment(client, home, study_name))
    parent = str(record.attrs["mlflow_parent"])
    tracker.artifact(parent, out, "report")
    tracker.describe(parent, path.read_text(), images_in="report")
    return path
