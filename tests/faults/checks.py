"""What must hold after any fault, checked against both databases and the files."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from harness.gan.run import CURVE_NAMES
from harness.home import Home
from harness.store.records import StudyRecord, TrialRecord
from harness.store.studies import started_study, study_to_record
from harness.sweep.reconcile import training_records
from harness.tracking.client import client_for
from harness.tracking.mirror import Reflection
from harness.tracking.mlflow import STATUS
from tests.conftest import TINY_STUDY

# Without Inception a worker is ready seconds earlier.
QUICK = TINY_STUDY.replace("[scoring.final]\nsamples = 20", '[scoring.final]\nextractor = "mobilenet-v2"\nsamples = 24')


def finished(record: StudyRecord) -> list[TrialRecord]:
    return [trial for trial in record.trials if trial.state in ("COMPLETE", "PRUNED")]


def curve(home: Home, trial: TrialRecord) -> list[dict[str, float]]:
    """A trial's curve without its speeds."""
    rows = json.loads((home.root / trial.attrs.folder / "curve.json").read_text())
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]


def outcome(home: Home, record: StudyRecord) -> dict[int, Any]:
    """By place: parameters, state, score, rung scores and curve of every trial that the budget counts."""
    return {
        trial.attrs.position: (
            dict(trial.params), trial.state, trial.value, dict(trial.intermediate), trial.attrs.scores,
            curve(home, trial),
        )
        for trial in finished(record)
    }  # fmt: skip


def check_all(home: Home, study: str, target: int, fault: Fault | None = None) -> StudyRecord:
    """Every trial ended for a reason, none twice; MLflow agrees run by run and point by point; nothing is half done.

    Where a fault is named, what is missing and doubled is written into the table before it is asserted to be nothing.
    """
    record = study_to_record(started_study(study, home))
    places = Counter(trial.attrs.position for trial in finished(record))
    runs, points = _wrong_runs(home, record), _wrong_points(home, record)
    if fault:
        fault.write(lost=target - len(places), doubled=places.total() - len(places) + len(runs), points=len(points))
    assert {trial.state for trial in record.trials} <= {"COMPLETE", "PRUNED", "FAIL"}, record.trials
    assert len(finished(record)) == target
    assert max(places.values()) == 1, places
    assert all(trial.reason for trial in record.trials if trial.state == "FAIL")
    retried = Counter(trial.attrs.retry_of for trial in record.trials if trial.attrs.retry_of is not None)
    assert max(retried.values(), default=1) == 1, retried
    assert record.best is None or math.isfinite(record.best.value)
    assert runs == []
    assert points == [], points
    _check_files(home)
    return record


@dataclass(kw_only=True)
class Fault:
    """A line of the table in docs/reliability.md, written where HARNESS_FAULTS_TABLE names a file."""

    name: str
    times: int
    recovery_s: list[float] = field(default_factory=list)

    def write(self, *, lost: int, doubled: int, points: int) -> None:
        table = os.environ.get("HARNESS_FAULTS_TABLE")
        if table:
            row = {**asdict(self), "lost": lost, "doubled": doubled, "points": points}
            with Path(table).open("a") as file:
                file.write(json.dumps(row) + "\n")


def _children(home: Home, record: StudyRecord) -> tuple[MlflowClient, list[Run]]:
    client = client_for(home)
    parent = record.attrs.mlflow_parent
    query = f"tags.`mlflow.parentRunId` = '{parent}'"
    return client, list(client.search_runs([record.attrs.mlflow_experiment], query, max_results=1000))


def _wrong_runs(home: Home, record: StudyRecord) -> list[str]:
    """Attempts without exactly one run in the right state."""
    _, runs = _children(home, record)
    there = Counter(int(run.data.tags["trial"]) for run in runs)
    expected = {trial.number: trial for trial in record.trials}
    found = [
        f"trial {n}: {there[n]} runs" for n in sorted(expected.keys() | there) if there[n] != 1 or n not in expected
    ]
    for run in runs:
        trial = expected.get(int(run.data.tags["trial"]))
        if trial is not None and run.info.status != STATUS[trial.state]:
            found.append(f"trial {trial.number}: {trial.state}, run {run.info.status}")
    return found


def _wrong_points(home: Home, record: StudyRecord) -> list[str]:
    """Points that are in MLflow twice, or missing, or other than those of the curve and the database."""
    found: list[str] = []
    client, runs = _children(home, record)
    for run in runs:
        trial = next(trial for trial in record.trials if trial.number == int(run.data.tags["trial"]))
        points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        for name, history in points.items():
            steps = Counter(point.step for point in history)
            found += [f"trial {trial.number}: {name} at {step}, {n} times" for step, n in steps.items() if n > 1]
        if trial.state not in ("COMPLETE", "PRUNED"):
            continue
        for name in CURVE_NAMES:
            logged = {point.step: point.value for point in points.get(name, [])}
            trained = {round(row["kimg"] * 1000): row[name] for row in curve(home, trial)}
            found += [f"trial {trial.number}: {name} at {step}" for step, _ in logged.items() ^ trained.items()]
        samplings = trial.attrs.samplings if trial.state == "COMPLETE" else []
        rungs = {point.step: point.value for point in points.get(record.attrs.rung_metric, [])}
        # A plan without rungs has one protocol: what is logged under its name is the final score, at 0.
        one_protocol = record.attrs.rung_metric == record.attrs.final_metric
        expected = {**trial.intermediate, **({0: trial.value} if one_protocol and samplings else {})}
        if not trial.attrs.diverged:
            found += [f"trial {trial.number}: rung at {step}" for step, _ in rungs.items() ^ expected.items()]
        if samplings and run.data.metrics.get(record.attrs.final_metric) != trial.value:
            found.append(f"trial {trial.number}: final score")
        if samplings and trial.value != statistics.fmean(samplings):
            found.append(f"trial {trial.number}: its score is not its samplings' mean")
    return found


def _check_files(home: Home) -> None:
    records = [*home.root.glob("trials/*/*/*/run-*.json"), *training_records(home)]
    assert [path for path in records if Reflection(path).unsent()] == [], "everything was sent"
    torn = [path for path in home.root.rglob(".*") if path.is_file() and _is_temporary(path)]
    assert all("trials" in path.parts for path in torn), torn


def _is_temporary(path: Path) -> bool:
    return not path.name.endswith(".lock")
