"""What must hold after any fault, checked against both databases and the files."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from harness.home import Home
from harness.study.records import StudyRecord, TrialRecord
from harness.sweep.storage import load_study, to_record
from harness.tracking.mlflow import client_for
from harness.tracking.tracker import STATUS
from tests.conftest import TINY_STUDY

# Without Inception a worker is ready seconds earlier.
QUICK = TINY_STUDY.replace("[scoring.final]\nsamples = 20", '[scoring.final]\nextractor = "mobilenet-v2"\nsamples = 24')


def finished(record: StudyRecord) -> list[TrialRecord]:
    return [trial for trial in record.trials if trial.state in ("COMPLETE", "PRUNED")]


def curve(home: Home, trial: TrialRecord) -> list[dict[str, float]]:
    """A trial's curve without its speeds."""
    rows = json.loads((home.root / trial.attrs["folder"] / "curve.json").read_text())
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]


def outcome(home: Home, record: StudyRecord) -> dict[int, Any]:
    """By place: parameters, state, score, rung scores and curve of every trial that the budget counts."""
    return {
        trial.attrs["place"]: (
            dict(trial.params), trial.state, trial.value, dict(trial.intermediate), trial.attrs.get("scores"),
            curve(home, trial),
        )
        for trial in finished(record)
    }  # fmt: skip


def check_all(home: Home, study: str, target: int) -> StudyRecord:
    """Every trial ended for a reason, none twice; MLflow agrees run by run and point by point; nothing is half done."""
    record = to_record(load_study(study, home))
    assert {trial.state for trial in record.trials} <= {"COMPLETE", "PRUNED", "FAIL"}, record.trials
    assert len(finished(record)) == target
    places = Counter(trial.attrs["place"] for trial in finished(record))
    assert max(places.values()) == 1, places
    assert all(trial.reason for trial in record.trials if trial.state == "FAIL")
    retried = Counter(trial.attrs["retry_of"] for trial in record.trials if "retry_of" in trial.attrs)
    assert max(retried.values(), default=1) == 1, retried
    assert record.best is None or math.isfinite(record.best.value)
    _check_mlflow(home, record)
    _check_files(home)
    return record


def _check_mlflow(home: Home, record: StudyRecord) -> None:
    client = client_for(home)
    parent = record.attrs["mlflow_parent"]
    runs = client.search_runs(
        [record.attrs["mlflow_experiment"]], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=1000
    )
    by_trial = {int(run.data.tags["trial"]): run for run in runs}
    assert sorted(by_trial) == [trial.number for trial in record.trials]
    assert len(runs) == len(by_trial), "one run an attempt"
    for trial in record.trials:
        run = by_trial[trial.number]
        assert run.info.status == STATUS[trial.state], trial
        for name in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert len(steps) == len(set(steps)), (trial.number, name, steps)
        if trial.state not in ("COMPLETE", "PRUNED"):
            continue
        history = client.get_metric_history(run.info.run_id, "loss_d")
        expected = [(round(row["kimg"] * 1000), row["loss_d"]) for row in curve(home, trial)]
        assert sorted((point.step, point.value) for point in history) == sorted(expected), trial.number
        rungs = client.get_metric_history(run.info.run_id, record.attrs["rung_metric"])
        assert {p.step: p.value for p in rungs} == dict(trial.intermediate) or trial.attrs.get("diverged")
        if trial.state == "COMPLETE":
            assert run.data.metrics[record.attrs["final_metric"]] == trial.value


def _check_files(home: Home) -> None:
    assert list(home.spool.glob("*.jsonl")) == [], "everything was sent"
    torn = [path for path in home.root.rglob(".*") if path.is_file() and _is_temporary(path)]
    assert all("trials" in path.parts for path in torn), torn


def _is_temporary(path: Path) -> bool:
    return not path.name.endswith((".lock", ".owner"))
