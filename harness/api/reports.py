"""Write reports from the database, and attach them to their studies' runs in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from harness import atomic
from harness.data.store import store_by_fingerprint
from harness.errors import UsageError
from harness.findings.headline import Headline, headline
from harness.home import Home
from harness.report.claims import build_claims_report
from harness.report.compare import build_comparison
from harness.report.study import build_report
from harness.store.samplers import EVALUATOR, importances
from harness.store.studies import find_confirmation, started_study, stored_spec, study_to_record
from harness.sweep.reconcile import register_best
from harness.tracking.client import new_client
from harness.tracking.mlflow import MlflowTracker, attach_report
from harness.training.share import bring_results

# As many as a sample grid has.
_REAL_IMAGES = 64


def write_report(name: str, home: Home, say: Callable[[str], None], *, images: bool = True) -> Path:
    """Write ``reports/STUDY`` from the database, and attach it to the study's run in MLflow if that answers.

    A confirmation is reported in its search's report, ``STUDY-claims`` in ``reports/claims-STUDY``. Without ``images``
    a report of claims has no samples. Files of other machines' trials are fetched from the share.
    """
    study = started_study(name, home)
    record = study_to_record(study)
    plan = record.attrs.spec.get("plan")
    if plan and plan["kind"] != "claims":
        return write_report(plan["study"], home, say)
    if plan:
        stored_spec(study)  # raises if it cannot be read
    bring_results(record, home, say)
    confirmed = None if plan else find_confirmation(name, home)
    if confirmed is not None:
        bring_results(confirmed, home, say)
    out = Path("reports") / (f"claims-{name.removesuffix('-claims')}" if plan else name)
    with FileLock(home.root / f".report-{name}.lock"):
        atomic.remove_torn(out)
        if plan:
            path = build_claims_report(record, home.root, out, images=images)
        else:
            store = store_by_fingerprint(home, record.attrs.dataset["fingerprint"])
            real = store.sheet(_REAL_IMAGES) if store else None
            path = build_report(record, home.root, out, importances(study), EVALUATOR, confirmed, real)
    tracker = MlflowTracker(new_client(home), record.attrs.mlflow_experiment)
    tags = {} if plan else headline(record, confirmed).tags
    attached = attach_report(tracker, record.attrs.mlflow_parent, path, say, **tags)
    if attached and (done := register_best(record, confirmed, tracker.client, home)):
        say(done)
    return path


def study_headline(name: str, home: Home) -> Headline:
    """The verdict on a started search, with its confirmation if there is one."""
    return headline(study_to_record(started_study(name, home)), find_confirmation(name, home))


def write_comparison(names: Sequence[str], home: Home) -> Path:
    """Write ``reports/compare-A-B`` of started searches, each named once."""
    if len(set(names)) < len(names):
        raise UsageError("a study is named twice", "Name each once.")
    records = [study_to_record(started_study(name, home)) for name in names]
    for record in records:
        if record.attrs.spec.get("plan"):
            raise UsageError(f"{record.name} is not a search", "Its study's own report shows it.")
    out = Path("reports") / f"compare-{'-'.join(names)}"
    return build_comparison([(record, find_confirmation(record.name, home)) for record in records], out)
