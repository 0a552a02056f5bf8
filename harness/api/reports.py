"""Writing reports from the database, and attaching them to their studies' runs in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from harness import atomic
from harness.errors import UsageError, without_secrets
from harness.home import Home
from harness.report.claims import build_claims_report
from harness.report.compare import build_comparison
from harness.report.study import build_report
from harness.store.records import StudyRecord
from harness.store.samplers import EVALUATOR, importances
from harness.store.studies import find_record, started_study, stored_spec, study_to_record
from harness.training.share import bring_results


def write_report(study_name: str, home: Home, say: Callable[[str], None]) -> Path:
    """Write ``reports/STUDY`` from the database, and attach it to the study's parent run in MLflow if that answers.

    Of a fixed study it is the report that shows it.

    Args:
        study_name: a started study.
        home: where the files of its trials are; those of other machines' trials are fetched from the share.
        say: called with what could not be had.
    """
    study = started_study(study_name, home)
    record = study_to_record(study)
    plan = record.attrs.spec.get("plan")
    if plan and plan["kind"] == "claims":
        return write_claims_report(study_name, home, say, images=True)
    if plan:
        return write_report(plan["study"], home, say)
    bring_results(record, home, say)
    confirmed = find_record(f"{study_name}-confirm", home)
    if confirmed is not None:
        bring_results(confirmed, home, say)
    out = Path("reports") / study_name
    with FileLock(home.root / f".report-{study_name}.lock"):
        atomic.remove_torn(out)
        path = build_report(record, home.root, out, importances(study), EVALUATOR, confirmed)
    _attach(record, out, path, home, say)
    return path


def write_comparison(names: Sequence[str], home: Home) -> Path:
    """Write ``reports/compare-A-B`` of started studies.

    Raises:
        NotFoundError: one was not started.
        UsageError: one is named twice, or is a fixed study.
    """
    if len(set(names)) < len(names):
        raise UsageError("a study is named twice", "Name each once.")
    records = [study_to_record(started_study(name, home)) for name in names]
    for record in records:
        if record.attrs.spec.get("plan"):
            raise UsageError(f"{record.name} is not a search", "Its study's own report shows it.")
    out = Path("reports") / f"compare-{'-'.join(names)}"
    return build_comparison([(record, find_record(f"{record.name}-confirm", home)) for record in records], out)


def write_claims_report(name: str, home: Home, say: Callable[[str], None], *, images: bool) -> Path:
    """Write ``reports/claims-STUDY`` from the database, and attach it to its run in MLflow if that answers.

    Args:
        name: ``STUDY-claims``, started.
        home: where the files of its trials are.
        say: called with what could not be had.
        images: whether samples are shown.
    """
    study = started_study(name, home)
    stored_spec(study)  # or a sentence why it cannot be read
    record = study_to_record(study)
    bring_results(record, home, say)
    out = Path("reports") / f"claims-{name.removesuffix('-claims')}"
    with FileLock(home.root / f".report-{name}.lock"):
        atomic.remove_torn(out)
        path = build_claims_report(record, home.root, out, images=images)
    _attach(record, out, path, home, say)
    return path


def _attach(record: StudyRecord, out: Path, path: Path, home: Home, say: Callable[[str], None]) -> None:
    from harness.tracking.mlflow import MlflowTracker, client_for

    try:
        tracker = MlflowTracker(client_for(home), record.attrs.mlflow_experiment)
        parent = record.attrs.mlflow_parent
        tracker.artifact(parent, out, "report")
        tracker.describe(parent, path.read_text(), images_in="report")
    except Exception as error:  # whatever the tracking library raises: the report is written
        lines = without_secrets(str(error)).strip().splitlines() or [""]
        say(f"the report could not be attached to its run in MLflow ({type(error).__name__}: {lines[0][:120]})")
