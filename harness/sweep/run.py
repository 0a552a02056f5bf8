"""A sweep from its study file to the finished study: prepares, runs the workers, and closes the parent run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna

from harness.data.store import OnProgress, open_store
from harness.errors import DataError, UsageError
from harness.home import Home
from harness.scoring.protocol import objective_name
from harness.study.spec import StudySpec
from harness.sweep.engines.local import Event, WorkerJob, run_workers, threads_per_worker
from harness.sweep.processes import usable_cores
from harness.sweep.provenance import provenance
from harness.sweep.reconcile import reconcile
from harness.sweep.storage import finished_count, open_study, to_record
from harness.tracking.mlflow import MlflowTracker, client_for, open_experiment
from harness.tracking.tracker import RunInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """How a sweep ended. ``interrupted``: it ended before its budget was reached."""

    finished: int
    target: int
    interrupted: bool


def run_sweep(
    spec: StudySpec,
    home: Home,
    *,
    source: Path | None,
    trials: int | None,
    workers: int,
    device: str,
    resume_anyway: bool,
    on_event: Callable[[Event], None],
    on_progress: OnProgress,
    stop_level: Callable[[], int],
) -> SweepResult:
    """Run or continue a study until ``trials`` (or the file's number) are COMPLETE or PRUNED.

    Raises:
        HarnessError: anything that a person must see: data, weights, drift, workers that die.
    """

    def say(text: str) -> None:
        on_event({"doing": text})

    target = trials or spec.budget.trials
    device = choose_device(device)
    store = open_store(home, spec.data, source, study=spec.name, on_progress=on_progress, say=say)
    require_images(spec, store.n_train, store.n_held_out)
    study = open_study(spec, home, resume_anyway=resume_anyway)
    dataset = {"name": spec.data.source, "fingerprint": store.fingerprint, "source": spec.data.source}
    _refuse_other_images(study, dataset)
    say("opening MLflow")
    client = client_for(home)
    experiment_id = open_experiment(client, home, spec.name, spec.description)
    tags = {**provenance(device), "study": spec.name, "spec_hash": spec.spec_hash}
    parent = MlflowTracker(client, experiment_id)
    parent_run = parent.start(
        RunInfo(
            key=f"{spec.name}/sweep/{study.user_attrs['uid']}",
            name=f"sweep {spec.name}",
            params={},
            tags={**tags, "role": "sweep"},
        )
    )

    def heal() -> None:
        # Whoever presses Ctrl-C twice kills the workers himself: that is no crash of the trial.
        crashed = stop_level() < 2
        for line in reconcile(study, home, MlflowTracker(client, experiment_id, parent_run), crashed=crashed):
            say(line)

    heal()
    _describe(study, spec, dataset, len(store), target, tags, parent_run)
    on_event({"record": to_record(study), "target": target})
    if finished_count(study) < target:
        cores = usable_cores()
        job = WorkerJob(
            spec=spec,
            home=home,
            store=store,
            device=device,
            target=target,
            threads=threads_per_worker(cores, workers),
            cores=cores,
            tags=tags,
            dataset=dataset,
            experiment_id=experiment_id,
            parent_run=parent_run,
        )
        try:
            run_workers(job, workers, on_event=on_event, stop_level=stop_level, on_death=heal)
        finally:
            heal()
            finished = finished_count(study)
            parent.end(parent_run, "COMPLETE" if finished >= target else "FAIL", scores={}, tags={})
    finished = finished_count(study)
    parent.end(parent_run, "COMPLETE" if finished >= target else "FAIL", scores=_summary(study), tags={})
    return SweepResult(finished=finished, target=target, interrupted=finished < target)


def choose_device(wanted: str) -> str:
    """``auto`` becomes ``cuda`` where there is one.

    Raises:
        UsageError: an unknown device, or CUDA where there is none.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise UsageError(f"DEVICE={wanted!r} is not known", "Use auto, cpu or cuda.")
    if wanted == "cpu":
        return wanted
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError("DEVICE=cuda, but torch finds no CUDA device", "`harness doctor` shows why; or use cpu.")
    return "cuda" if available else "cpu"


def require_images(spec: StudySpec, n: int, n_held_out: int) -> None:
    """Refuse before training what would fail in scoring.

    Raises:
        DataError: fewer images than the scoring protocol or the largest batch needs.
    """
    batch = spec.largest_batch()
    if n < batch:
        raise DataError(
            f"{n} usable images do not fill the largest batch of {spec.name}, {batch}",
            "Give more images, or lower batch_size in the study.",
        )
    for score in (spec.scoring.final, spec.scoring.rung):
        there, which = (n_held_out, " held-out") if score.split == "held_out" else (n, "")
        if there < score.reference:
            raise DataError(
                f"{there} usable{which} images are too few: the scoring of {spec.name} compares with "
                f"{score.reference} real images",
                "Give more images, or lower `reference` in the study's [scoring] tables.",
            )


def _refuse_other_images(study: optuna.Study, dataset: dict[str, str]) -> None:
    before = study.user_attrs.get("dataset")
    if before and before["fingerprint"] != dataset["fingerprint"]:
        raise DataError(
            f"study {study.study_name} was started on other images "
            f"(fingerprint {before['fingerprint'][:12]}, now {dataset['fingerprint'][:12]})",
            "Scores on different images cannot be ranked together: use the same images, or copy the study file "
            "to a new name.",
        )


def _describe(
    study: optuna.Study,
    spec: StudySpec,
    dataset: dict[str, str],
    n_images: int,
    target: int,
    tags: dict[str, str],
    parent_run: str,
) -> None:
    study.set_user_attr("dataset", {**dataset, "images": n_images})
    study.set_user_attr("target", target)
    if "environment" not in study.user_attrs or finished_count(study) < target:
        study.set_user_attr("environment", tags)
    study.set_user_attr("mlflow_parent", parent_run)
    study.set_user_attr("final_metric", objective_name(spec.scoring.final))
    study.set_user_attr("rung_metric", objective_name(spec.scoring.rung))


def _summary(study: optuna.Study) -> dict[str, float]:
    done = [t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE and t.values]
    if not done:
        return {}
    name = str(study.user_attrs["final_metric"])
    return {f"best_{name}": min(float(trial.value or 0.0) for trial in done), "trials_complete": float(len(done))}
