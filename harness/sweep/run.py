"""A sweep from its study file to the finished study: prepares, runs the workers, and closes the parent run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna

from harness.data.store import ImageStore, OnProgress, open_store
from harness.errors import DataError, SpecDrift, StorageLost
from harness.home import Home
from harness.machine.devices import Machines, choose_device
from harness.machine.forks import call_in_fork, call_with_torch, start_fork_server
from harness.machine.imports import function_sha256
from harness.machine.processes import usable_cores, visible_gpus
from harness.machine.provenance import provenance
from harness.scoring.protocol import objective_name
from harness.spec.resolved import ResolvedStudy, with_stored_precision
from harness.store.connection import grace_s
from harness.store.database import open_storage, write_study_attrs
from harness.store.records import StudyAttrs
from harness.store.studies import open_study, started_study, stored_spec, study_to_record
from harness.store.trials import Trials, finished_count
from harness.sweep.engines.local import run_local, threads_per_worker
from harness.sweep.engines.loop import WorkerJob
from harness.sweep.events import Event, Opened, Said
from harness.sweep.parent import ParentRun
from harness.sweep.precision import resolve_precision
from harness.tracking.mlflow import client_for


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """How a sweep ended. ``interrupted``: it ended before its budget was reached."""

    finished: int
    target: int
    interrupted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """An open study with its images, ready for workers; ``starts``: not one that another machine started."""

    spec: ResolvedStudy
    home: Home
    study: optuna.Study
    store: ImageStore
    parent: ParentRun
    tags: dict[str, str]
    starts: bool
    any_protocol: bool = False


def run_sweep(
    spec: ResolvedStudy,
    home: Home,
    *,
    source: Path | None,
    trials: int | None,
    machines: Machines,
    resume_anyway: bool,
    exact: bool = False,
    on_event: Callable[[Event], None],
    on_progress: OnProgress,
    stop_level: Callable[[], int],
) -> SweepResult:
    """Run or continue a study until ``trials`` are COMPLETE or PRUNED; None: the file's number, or what it once was.

    Raises:
        HarnessError: anything that a person must see: data, weights, drift, workers that die.
        StorageLost: the database was away for longer than the grace period.
    """

    def say(text: str) -> None:
        on_event(Said(text=text))

    def resolved(spec: ResolvedStudy) -> ResolvedStudy:
        say("preparing workers")
        start_fork_server()
        client_for(home)  # whose imports take as long as the workers', meanwhile
        spec, said = call_in_fork(resolve_precision, spec, choose_device(machines.device), exact)
        for text in said:
            say(text)
        return spec

    if spec.network:
        spec = spec.model_copy(update={"network_sha256": call_with_torch(function_sha256, spec.network)})
    if machines.device != "auto":  # which is never refused: asking can wait until the images are there
        choose_device(machines.device)
    store = open_store(home, spec.data, source, study=spec.name, on_progress=on_progress, say=say)
    require_images(spec, store.n_train, store.n_held_out)
    storage = open_storage(home, grace=grace_s(), say=say, stop=lambda: stop_level() > 0)
    study = open_study(
        resolved(spec) if exact else spec, home, resume_anyway=resume_anyway, storage=storage, resolve=resolved
    )
    attrs = StudyAttrs.parse(study.user_attrs)
    spec = with_stored_precision(spec, attrs.spec)
    # A start that names no number continues to what was wanted last.
    target = trials or max(spec.budget.trials, attrs.target)
    refuse_other_images(study, store.fingerprint)
    if machines.engine == "local" and finished_count(study) < target:
        start_fork_server()
    say("opening MLflow")
    tags = {**provenance(choose_device(machines.device)), "study": spec.name, "spec_hash": spec.spec_hash}
    parent = ParentRun.open(study, spec, home, tags, say)
    parent.heal(Trials(study, spec, home), crashed=True)
    _describe(study, spec, store, target, tags)
    parent.note(study)
    sweep = _Sweep(
        spec=spec, home=home, study=study, store=store, parent=parent, tags=tags, starts=True,
        # Trainings of a fixed study are done under whichever protocol most have.
        any_protocol=resume_anyway or spec.plan is not None,
    )  # fmt: skip
    return _run(sweep, machines, on_event, stop_level)


def join_sweep(
    name: str,
    home: Home,
    *,
    source: Path | None,
    machines: Machines,
    on_event: Callable[[Event], None],
    on_progress: OnProgress,
    stop_level: Callable[[], int],
) -> SweepResult:
    """Add this machine's workers to a study that was started elsewhere, until its target is reached.

    Study, images' fingerprint, target and tracking are the database's; this machine brings the images.

    Raises:
        HarnessError: the study was not started, the images are others, workers die.
        StorageLost: the database was away for longer than the grace period.
    """

    def say(text: str) -> None:
        on_event(Said(text=text))

    device = choose_device(machines.device)
    storage = open_storage(home, grace=grace_s(), say=say, stop=lambda: stop_level() > 0)
    study = started_study(name, home, storage=storage)
    spec = stored_spec(study)
    if spec.network and spec.network_sha256 != call_with_torch(function_sha256, spec.network):
        raise SpecDrift(
            f"study {name} was started with another version of {spec.network}",
            "Its trainings would not be comparable: bring the file that the study was started with.",
        )
    store = open_store(home, spec.data, source, study=name, on_progress=on_progress, say=say)
    refuse_other_images(study, store.fingerprint)
    tags = {**provenance(device), "study": name, "spec_hash": spec.spec_hash}
    parent = ParentRun.known(study, spec, home, say)
    parent.heal(Trials(study, spec, home), crashed=stop_level() < 2)
    sweep = _Sweep(spec=spec, home=home, study=study, store=store, parent=parent, tags=tags, starts=False)
    return _run(sweep, machines, on_event, stop_level)


def _run(
    sweep: _Sweep, machines: Machines, on_event: Callable[[Event], None], stop_level: Callable[[], int]
) -> SweepResult:
    """Run workers until the study's target is reached, heal what they left, and close the study's run."""
    study, parent, trials = sweep.study, sweep.parent, Trials(sweep.study, sweep.spec, sweep.home)
    on_event(Opened(record=study_to_record(study), target=target_of(study)))

    def heal() -> None:
        # Who presses Ctrl-C twice kills the workers: that is no crash of the trial.
        parent.heal(trials, crashed=stop_level() < 2)

    def end() -> None:
        if sweep.starts or finished_count(study) >= target_of(study):
            parent.end(study, target_of(study))

    if finished_count(study) < target_of(study):
        with ending_with(heal, end):
            _run_workers(worker_job(sweep, machines), machines, on_event, stop_level, heal)
    else:
        end()
    finished, target = finished_count(study), target_of(study)
    return SweepResult(finished=finished, target=target, interrupted=finished < target)


def target_of(study: optuna.Study) -> int:
    """COMPLETE and PRUNED trials that are wanted; another machine's start may raise it."""
    return StudyAttrs.parse(study.user_attrs).target


@contextmanager
def ending_with(*steps: Callable[[], None]) -> Iterator[None]:
    """Take these steps at the end, whatever happens; but not where the database is lost, for which each would wait."""
    lost = False
    try:
        yield
    except StorageLost:
        lost = True
        raise
    finally:
        for step in () if lost else steps:
            step()


def worker_job(sweep: _Sweep, machines: Machines) -> WorkerJob:
    """What each worker of this machine is given."""
    device, cores = choose_device(machines.device), usable_cores()
    attrs = StudyAttrs.parse(sweep.study.user_attrs)
    return WorkerJob(
        spec=sweep.spec,
        home=sweep.home,
        store=sweep.store,
        device=device,
        threads=threads_per_worker(cores, machines.workers),
        cores=cores,
        tags=sweep.tags,
        dataset=_dataset(sweep.spec, sweep.store),
        experiment_id=attrs.mlflow_experiment,
        parent_run=attrs.mlflow_parent,
        uid=attrs.uid,
        workers=machines.workers,
        gpus=call_with_torch(visible_gpus) if device == "cuda" else (),
        resume_anyway=sweep.any_protocol,
    )


def _run_workers(
    job: WorkerJob,
    machines: Machines,
    on_event: Callable[[Event], None],
    stop_level: Callable[[], int],
    on_death: Callable[[], None],
) -> None:
    if machines.engine == "local":
        run_local(job, on_event=on_event, stop_level=stop_level, on_death=on_death)
        return
    from harness.sweep.engines.ray import run_ray

    share, address = machines.gpus_per_worker, machines.address
    run_ray(
        job, machines.workers, address=address, gpus_per_worker=share,
        on_event=on_event, stop_level=stop_level, on_death=on_death,
    )  # fmt: skip


def _dataset(spec: ResolvedStudy, store: ImageStore) -> dict[str, str]:
    return {"name": spec.data.source, "fingerprint": store.fingerprint, "source": spec.data.source}


def require_images(spec: ResolvedStudy, n: int, n_held_out: int) -> None:
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


def refuse_other_images(study: optuna.Study, fingerprint: str) -> None:
    """Compare the fingerprint of this machine's images with the study's.

    Raises:
        DataError: they are others.
    """
    before = StudyAttrs.parse(study.user_attrs).dataset
    if before and before["fingerprint"] != fingerprint:
        raise DataError(
            f"study {study.study_name} was started on other images "
            f"(fingerprint {before['fingerprint'][:12]}, now {fingerprint[:12]})",
            "Scores on different images cannot be ranked together: use the same images, or copy the study file "
            "to a new name.",
        )


def _describe(study: optuna.Study, spec: ResolvedStudy, store: ImageStore, target: int, tags: dict[str, str]) -> None:
    known = StudyAttrs.parse(study.user_attrs).environment
    described = StudyAttrs(
        dataset={**_dataset(spec, store), "images": len(store)},
        target=target,
        environment=known if known and finished_count(study) >= target else tags,
        final_metric=objective_name(spec.scoring.final),
        rung_metric=objective_name(spec.scoring.rung),
    )
    write_study_attrs(study, described)
