"""A sweep from its study file to the finished study: prepare, run the workers, close the parent run."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import psutil
from optuna.exceptions import ExperimentalWarning

from harness.data.store import ImageStore, open_store
from harness.errors import DataError, SpecDrift, StorageLost, UsageError
from harness.home import Home
from harness.machine.forks import call_in_fork, call_with_torch, start_fork_server
from harness.machine.imports import function_sha256
from harness.machine.processes import Machines, choose_device, exact_arithmetic, trains_on, usable_cores, visible_gpus
from harness.scoring.protocol import INCEPTION, objective_name
from harness.spec.files import described_elsewhere
from harness.spec.fit import few_images, require_images, with_all_images
from harness.spec.resolved import ResolvedStudy, with_precision, with_stored_choices
from harness.store.connection import grace_s
from harness.store.database import open_storage, write_study_attrs
from harness.store.records import StudyAttrs
from harness.store.studies import open_study, started_study, stored_spec, study_to_record
from harness.store.trials import Trials, finished_count
from harness.sweep.engines.local import LocalEngine, lanes_for, threads_per_worker, workers_for
from harness.sweep.hours import TimeBudget
from harness.sweep.messages import Opened, Watcher, WorkerJob
from harness.sweep.reconcile import ParentRun
from harness.text import counted
from harness.tracking.client import client_for


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """How a sweep ended. ``interrupted``: before it reached its budget; ``out_of_time``: its hours were up."""

    finished: int
    target: int
    interrupted: bool
    out_of_time: bool = False


def run_sweep(
    spec: ResolvedStudy,
    home: Home,
    watcher: Watcher,
    *,
    source: Path | None,
    machines: Machines,
    trials: int | None = None,
    resume_anyway: bool = False,
    exact: bool = False,
    hours: float | None = None,
) -> SweepResult:
    """Run or continue a study until ``trials`` are COMPLETE or PRUNED; None: the file's number, or an earlier start's.

    With ``hours`` it ends within that time, with its best trials trained to the end and scored; the next start runs the
    other trials.
    """
    budget = None if hours is None else TimeBudget(spec, hours, machines.at_once)

    def resolved(spec: ResolvedStudy) -> ResolvedStudy:
        watcher.say("preparing workers and MLflow")
        start_fork_server()
        client_for(home)  # import MLflow while the workers import torch
        spec, said = with_all_images(spec, store.n_train, store.n_held_out)
        spec, of_precision = call_in_fork(resolve_precision, spec, choose_device(machines.device), exact)
        for text in said + of_precision:
            watcher.say(text)
        return spec

    if spec.network:
        spec = spec.model_copy(update={"network_sha256": call_with_torch(function_sha256, spec.network)})
    if machines.device != "auto":  # refuse a missing device before the images are prepared
        choose_device(machines.device)
    store = open_store(home, spec.data, source, study=spec.name, on_progress=watcher.on_progress, say=watcher.say)
    require_images(spec, store.n_train, store.n_held_out)
    store.require_contrast()
    source_name = store.named(spec.data.source)
    if source_name == "folder" and (whose := described_elsewhere(spec)):
        watcher.say(f"the description of {whose} is about other images; the report leaves it out")
        spec = spec.model_copy(update={"description": f"Images of your own, with the search of {whose}."})
    if few := few_images(spec, store.n_train):
        watcher.say(few)
    watcher.say("opening the study")
    storage = open_storage(home, grace=grace_s(), say=watcher.say, stop=watcher.stops)
    study = open_study(
        resolved(spec) if exact else spec, home, resume_anyway=resume_anyway, storage=storage, resolve=resolved
    )
    attrs = StudyAttrs.parse(study.user_attrs)
    spec = with_stored_choices(spec, attrs.spec)
    # Without a number, a start continues to the last target.
    target = max(trials or max(spec.budget.trials, attrs.target), finished_count(study))
    if trials and trials < target:
        watcher.say(f"TRIALS={trials}, but the study has finished {counted(target, 'trial')} already")
    refuse_other_images(study, store.fingerprint)
    if machines.engine == "local" and finished_count(study) < target:
        start_fork_server()
    watcher.say(trains_on(machines.device))
    watcher.say("opening MLflow")
    device = choose_device(machines.device)
    parent = ParentRun(Trials(study, spec, home), home, device, watcher.say, watcher.stop_level).open()
    parent.heal(crashed=True)
    machines = with_workers(machines, attrs.workers, spec, target - finished_count(study), device, watcher.say)
    dataset = {"name": source_name, "fingerprint": store.fingerprint, "source": source_name, "images": len(store)}
    if store.warnings:
        dataset["range"] = "; ".join(store.warnings)
    opened = StudyAttrs(
        dataset=dataset,
        target=target,
        workers=machines.workers or attrs.workers,
        environment=attrs.environment if attrs.environment and finished_count(study) >= target else parent.tags,
        final_metric=objective_name(spec.scoring.final),
        rung_metric=objective_name(spec.scoring.rung),
        mlflow_experiment=parent.tracker.experiment_id,
        mlflow_parent=parent.run_id,
    )
    write_study_attrs(study, opened)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        objectives = spec.objectives or ("score",)
        study.set_metric_names([opened.final_metric if name == "score" else name for name in objectives])
    # Reports of fixed studies use the protocol of most of their trainings.
    any_protocol = resume_anyway or spec.plan is not None
    if budget is None:
        return _run(parent, store, machines, watcher, starts=True, any_protocol=any_protocol)
    with ending_with(lambda: write_study_attrs(study, StudyAttrs(target=target))):  # closing in time lowers it
        budget.workers = machines.at_once
        timed = budget.close_in_time(study, watcher, device)
        result = _run(parent, store, machines, timed, starts=True, any_protocol=any_protocol)
    used_up = (budget.closed or budget.is_over) and result.finished < target and not watcher.stop_level()
    return dataclasses.replace(result, target=target, interrupted=result.finished < target, out_of_time=used_up)


def join_sweep(name: str, home: Home, watcher: Watcher, *, source: Path | None, machines: Machines) -> SweepResult:
    """Add this machine's workers to a study that was started elsewhere, until its target is reached.

    The database has the study, its target and the images' fingerprint; this machine must have the images.
    """
    device = choose_device(machines.device)
    watcher.say(trains_on(machines.device))
    storage = open_storage(home, grace=grace_s(), say=watcher.say, stop=watcher.stops)
    study = started_study(name, home, storage=storage)
    spec = stored_spec(study)
    if spec.network and spec.network_sha256 != call_with_torch(function_sha256, spec.network):
        raise SpecDrift(
            f"study {name} was started with another version of {spec.network}",
            "Its trainings would not be comparable. Use the file that the study was started with.",
        )
    store = open_store(home, spec.data, source, study=name, on_progress=watcher.on_progress, say=watcher.say)
    refuse_other_images(study, store.fingerprint)
    parent = ParentRun(Trials(study, spec, home), home, device, watcher.say, watcher.stop_level).known()
    parent.heal(crashed=watcher.stop_level() < 2)
    target = StudyAttrs.parse(study.user_attrs).target
    machines = with_workers(machines, 0, spec, target - finished_count(study), device, watcher.say)
    return _run(parent, store, machines, watcher, starts=False, any_protocol=False)


def with_workers(
    machines: Machines, before: int, spec: ResolvedStudy, trials: int, device: str, say: Callable[[str], None]
) -> Machines:
    """The same with numbers of workers and lanes, as asked, as before or as is fastest; a line says which."""
    if machines.engine == "ray" or trials <= 0:
        return machines
    number, why = machines.workers or before, "as asked" if machines.workers else "as when the study started"
    if not number:
        number, why = workers_for(spec, trials, device)
    chosen = dataclasses.replace(
        machines, workers=number, lanes=machines.lanes or lanes_for(spec, trials, device, number)
    )
    if not machines.workers or chosen.lanes not in (machines.lanes, 1):
        threads = counted(threads_per_worker(usable_cores(), chosen.at_once), "thread")
        lanes = f", up to {chosen.lanes} trials at once in each" if chosen.lanes != 1 else ""
        shared = f", {threads} each" if device == "cpu" else ""
        others = "WORKERS=N and LANES=N set other numbers" if lanes else "WORKERS=N sets another number"
        say(f"{counted(number, 'worker')}{lanes}{shared}: {why}; {others}")
    cores = usable_cores()
    busy = min(cores, round(min(psutil.getloadavg()[:2])))  # of 1 and of 5 minutes: not for a moment only
    room = max(1, cores - busy)
    if device == "cpu" and not machines.workers and busy and number > room:
        say(f"other programs kept about {busy} of {cores} cores busy in the last minutes; WORKERS={room} leaves room")
    return chosen


def _run(
    parent: ParentRun, store: ImageStore, machines: Machines, watcher: Watcher, starts: bool, any_protocol: bool
) -> SweepResult:
    """Run workers until the study reaches its target, heal what they left, close the run of a study started here."""
    study, cores = parent.trials.study, usable_cores()

    def target() -> int:  # another machine's start may raise it
        return StudyAttrs.parse(study.user_attrs).target

    def heal() -> None:
        # Ctrl-C twice kills the workers, which does not count as a crash of their trials.
        parent.heal(crashed=watcher.stop_level() < 2)

    def end() -> None:
        watcher.say("closing the study")
        parent.close(target() if starts or finished_count(study) >= target() else None)

    watcher.on_event(Opened(record=study_to_record(study), target=target()))
    if finished_count(study) >= target():
        end()
    else:
        watcher.say("starting workers")
        with ending_with(heal, end):
            job = WorkerJob(
                spec=parent.trials.spec,
                home=parent.home,
                store=store,
                device=parent.device,
                threads=threads_per_worker(cores, machines.at_once),
                cores=cores,
                tags=parent.tags,
                lanes=machines.lanes or 1,
                workers=machines.workers or 1,
                gpus=call_with_torch(visible_gpus) if parent.device == "cuda" else (),
                resume_anyway=any_protocol,
            )
            if machines.engine == "local":
                LocalEngine(job, watcher, heal).run()
            else:
                from harness.sweep.engines.ray import run_ray

                run_ray(job, machines, watcher, heal)
    finished, wanted = finished_count(study), target()
    return SweepResult(finished=finished, target=wanted, interrupted=finished < wanted)


@contextmanager
def ending_with(*steps: Callable[[], None]) -> Iterator[None]:
    """Run these steps at the end, whatever happens, unless the database is lost: each would wait for it."""
    lost = False
    try:
        yield
    except StorageLost:
        lost = True
        raise
    finally:
        for step in () if lost else steps:
            step()


def resolve_precision(spec: ResolvedStudy, device: str, exact: bool) -> tuple[ResolvedStudy, list[str]]:
    """The study with every precision that its file leaves open (``exact``: float32 throughout), and lines to say.

    Rungs are scored in bfloat16 where that is faster: it changes no order (docs/performance.md). Trainings are float32,
    on CUDA in TF32 (docs/decisions/0010-tf32-on-cuda.md); for them bfloat16 is only suggested.
    """
    if exact and "precision" in spec.space:
        raise UsageError(
            f"{spec.name} searches precision, and --exact is float32 throughout",
            "Remove [space.precision] from the file, or leave out --exact.",
        )
    of_training = spec.fixed.precision is None and "precision" not in spec.space
    of_rungs = spec.scoring.rung.precision is None
    if not (exact or of_training or of_rungs):
        return spec, []
    # These imports take seconds, so they are not done for every command.
    import torch

    from harness.gan.fast.precision import BF16, FLOAT32, usual
    from harness.sweep import speed

    if exact:
        return with_precision(spec, training=FLOAT32, rung=FLOAT32), []
    place = torch.device(device)
    exact_arithmetic()
    training = rung = None
    said: list[str] = []
    if of_training:
        training, gain = usual(place), speed.training_gain(spec.typical(), place)
        if gain >= speed.MIN_GAIN:
            said.append(f'a new study with precision = "bf16" in [fixed] would train {gain:.1f} times faster here')
    if of_rungs:
        quick = spec.scoring.rung.extractor == INCEPTION
        quick = quick and speed.scoring_gain(spec.data.image_size, place) >= speed.MIN_GAIN
        rung = BF16 if quick else FLOAT32
    return with_precision(spec, training=training, rung=rung), said


def refuse_other_images(study: optuna.Study, fingerprint: str) -> None:
    """Raise DataError if this machine's images are not the study's, by their fingerprints."""
    before = StudyAttrs.parse(study.user_attrs).dataset
    if before and before["fingerprint"] != fingerprint:
        raise DataError(
            f"study {study.study_name} was started on other images "
            f"(fingerprint {before['fingerprint'][:12]}, now {fingerprint[:12]})",
            "Scores on different images cannot be ranked together: use the same images, or copy the study file "
            "to a new name.",
        )
