"""What a sweep would take: time, memory and disk, from a few measured steps. Nothing is written."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.data.store import existing_store, find_material
from harness.errors import DataError
from harness.forecast.probe import (
    WIDTHS,
    Measured,
    ScoringTime,
    configurations,
    extractors,
    grid_bytes,
    has_vgg,
    kind,
    peak_bytes,
    scoring_rate,
    scoring_time,
)
from harness.home import Home
from harness.machine.devices import choose_device
from harness.machine.processes import exact_arithmetic, fits_on, keep_memory, usable_cores, use_threads, visible_gpus
from harness.spec.resolved import ResolvedStudy
from harness.store.records import StudyRecord
from harness.store.samplers import images as images_shown
from harness.store.samplers import make_pruner, study_in_memory
from harness.store.studies import find_record
from harness.store.views import PlacedHyperband
from harness.sweep.engines.local import threads_per_worker
from harness.sweep.precision import resolve_precision
from harness.sweep.run import require_images

# Files decoded to find out how fast that goes.
_FILES = 200
# Trials that must have ended before they say how much pruning saves.
_FEWEST_ENDED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a trial goes through, on average: shares of a full training and of the final scoring, and rungs scored."""

    trained: float
    rungs: float
    scored: float


def plan(
    spec: ResolvedStudy,
    home: Home,
    *,
    source: Path | None,
    trials: int | None,
    workers: int,
    device: str,
    exact: bool,
    say: Callable[[str], None],
) -> Iterator[tuple[str, str]]:
    """(what, finding), line by line, as it is measured.

    Raises:
        HarnessError: the data are not there, or the device is not.
    """
    keep_memory()
    exact_arithmetic()
    place = torch.device(choose_device(device))
    if place.type == "cpu":  # what each worker will have
        use_threads(threads_per_worker(usable_cores(), workers))
    spec, _ = resolve_precision(spec, place.type, exact)
    images, n_images, store_bytes, prepare_s = _images(spec, home, source, say)
    image_bytes = int(np.prod(images.shape[1:]))
    images = images[: max(spec.largest_batch(), _FILES)]
    # What is held beside what is measured: on a GPU the whole set, where it fits; on a CPU a final score's images.
    held_bytes = image_bytes * spec.scoring.final.samples if place.type == "cpu" else 0
    if place.type == "cuda" and fits_on(image_bytes * n_images, place):
        held_bytes, images = image_bytes * n_images, images.to(place)
    yield (
        "images",
        f"{n_images:,} of {spec.data.image_size} px"
        + (f"; preparing them takes about {_shown(prepare_s)}" if prepare_s else "; prepared already"),
    )
    yield (
        "precision",
        f"training {spec.fixed.precision or 'searched'}, rungs {spec.scoring.rung.precision}, final float32",
    )
    measured = []
    for found in configurations(spec, images, place):
        measured.append(found)
        yield (
            f"  {found.name}",
            f"{1 / found.s_per_kimg * 1000:,.0f} images/s, {found.parameters / 1e6:,.2f} M parameters",
        )
    if not measured:
        raise DataError("none of the tried configurations trains on these images", "Each of them diverged at once.")
    rates = {each: scoring_rate(*each, spec.data.image_size, place) for each in extractors(spec)}
    for (name, precision), rate in rates.items():
        yield f"  {name} {precision}", f"{rate:,.1f} images/s"
    scoring = scoring_time(spec, home, rates, statistics.mean(m.s_per_sample for m in measured), place)
    n_seeds = spec.scoring.sampling_seeds or 1
    yield (
        "  scores",
        f"{_shown(scoring.rung_s)} a rung, {_shown(scoring.final_s)} a final one"
        + (f", {_shown(scoring.again_s)} each of {n_seeds - 1} further sampling seeds" if n_seeds > 1 else "")
        + ("; VGG16's precision and recall come on top" if has_vgg(spec, home) else ""),
    )
    target = trials or spec.budget.trials
    yield (
        "time",
        _time(spec, measured, scoring, target, place, workers, own_course(spec, find_record(spec.name, home))),
    )
    peak = peak_bytes(place) + held_bytes
    where = "GPU memory" if place.type == "cuda" else "memory"
    n_places = len(visible_gpus()) if place.type == "cuda" else 1
    together = -(-workers // n_places)
    note = f", {peak * together / 1e9:,.1f} GB with {together} workers" if together > 1 else ""
    yield "memory", f"{peak / 1e9:,.1f} GB of {where} a worker{note} (peak of these measurements)"
    yield "disk", _disk(spec, home, measured, store_bytes, grid_bytes(images), target)
    threads = torch.get_num_threads()
    share = f", {threads} thread{'s' * (threads != 1)} each"
    if place.type == "cuda":
        share = f" on {n_places} GPUs" if n_places > 1 else ", which share the device"
    yield "cores", f"{usable_cores()}, {place.type}; {workers} worker{'s' * (workers != 1)}{share}"


def _images(
    spec: ResolvedStudy, home: Home, source: Path | None, say: Callable[[str], None]
) -> tuple[Tensor, int, int, float]:
    """(some images, how many there are, bytes still to be written, seconds to prepare them)."""
    material = find_material(home, spec.data, source, study=spec.name, say=say, may_download=False)
    store = existing_store(home, material)
    if store is not None:
        require_images(spec, store.n_train, store.n_held_out)
        return store.tensor(), len(store), 0, 0.0
    require_images(spec, material.n_train, material.count - material.n_train)
    started = time.perf_counter()
    decoded = [pixels for _, pixels, _ in material.sample(_FILES) if pixels is not None]
    if not decoded:
        raise DataError(
            f"none of the first {_FILES} files is usable", "`harness data prepare` names each with its reason."
        )
    seconds = (time.perf_counter() - started) / len(decoded) * material.count / usable_cores()
    # Repeated up to the largest batch: speed does not depend on what is in the pictures.
    times = -(-spec.largest_batch() // len(decoded))
    images = torch.from_numpy(np.stack(decoded * times))
    return images, material.n_train, material.count * int(np.prod(decoded[0].shape)), seconds


def _time(
    spec: ResolvedStudy,
    measured: list[Measured],
    scoring: ScoringTime,
    target: int,
    place: torch.device,
    workers: int,
    own: Course | None,
) -> str:
    """How long the sweep takes, as its own trials were pruned, or else between pruning nothing and all that can be."""
    final_s = scoring.final_s + ((spec.scoring.sampling_seeds or 1) - 1) * scoring.again_s
    baselines = {m.name: m.s_per_kimg * spec.budget.kimg for m in measured if m.baseline}
    searched = [m.s_per_kimg * spec.budget.kimg for m in measured if not m.baseline]
    typical = statistics.mean(searched or list(baselines.values()))
    named = [p.name for p in spec.presets[:target] if p.recipe]
    # Each was measured with a worker's threads; more workers than cores, or several on one GPU, are no sooner.
    at_once = min(workers, usable_cores() if place.type == "cpu" else len(visible_gpus()), target)
    full = Course(trained=1, rungs=len(spec.budget.marks) * spec.has_rungs, scored=1)

    def trial_s(course: Course, training_s: float) -> float:
        return course.trained * training_s + course.rungs * scoring.rung_s + course.scored * final_s

    def total_s(courses: Sequence[Course]) -> float:
        """Recipes run in full, each of the others takes its course."""
        recipes = sum(trial_s(full, baselines.get(name, typical)) for name in named)
        searching = sum(trial_s(course, typical) for course in courses)
        return (recipes + searching) / at_once + scoring.references_s

    on = f"on this {place.type}{f', {at_once} trials at once' if at_once > 1 else ''}"
    others = target - len(named)
    if not spec.budget.rungs or spec.pruner.name == "none":
        found = f"about {_shown(total_s([full] * others))} {on}, nothing is pruned"
    elif own is not None:
        found = (
            f"about {_shown(total_s([own] * others))} {on}, if pruning goes on as so far: its trials, recipes aside, "
            f"trained {100 * own.trained:.0f} % of a full length on average"
        )
    else:
        rungs = soonest_rungs(spec, target)
        least = [full if rung is None else _course_to(rung, spec) for rung in rungs]
        whole = len(named) + rungs.count(None)
        first = "the first rung of their bracket" if spec.pruner.name == "hyperband" else "the first rung"
        found = (
            f"about {_shown(total_s([full] * others))} at most {on} (nothing pruned), "
            f"{_shown(total_s(least))} at least (all but {whole} pruned at {first})"
        )
    scored = full.rungs * scoring.rung_s + final_s
    return (
        f"{found}; a full trial trains {_shown(typical)} and scores {_shown(scored)}, references once "
        f"{_shown(scoring.references_s)}; as far as the drawn configurations are typical"
    )


def soonest_rungs(spec: ResolvedStudy, target: int) -> list[float | None]:
    """Where each of a sweep's trials, recipes aside, ends at the soonest (kimg); None: it finishes whatever its score.

    The pruner waits for others to come as far, recipes among them, or lets the first that it judges at a rung go on.
    Hyperband does so in each bracket, and of a bracket that begins behind the last rung it prunes nothing.
    """
    rungs = spec.budget.rungs
    recipes = [place for place, preset in enumerate(spec.presets[:target]) if preset.recipe]
    places = [place for place in range(target) if place not in recipes]
    if spec.pruner.name in ("median", "percentile"):
        waited_for = max(1, spec.pruner.n_startup_trials) - len(recipes)
        return [None if count < waited_for else rungs[0] for count in range(len(places))]
    pruner, study = make_pruner(spec), study_in_memory(spec.name)
    found: list[float | None] = []
    begun: set[int] = set()
    for place in places:
        first = pruner.first_rung(study, place) if isinstance(pruner, PlacedHyperband) else images_shown(rungs[0])
        rung = next((rung for rung in rungs if images_shown(rung) >= first), None)
        found.append(rung if first in begun else None)
        begun.add(first)
    return found


def _course_to(rung: float, spec: ResolvedStudy) -> Course:
    scored = sum(mark <= rung for mark in spec.budget.marks)
    return Course(trained=rung / spec.budget.kimg, rungs=scored, scored=0)


def own_course(spec: ResolvedStudy, record: StudyRecord | None) -> Course | None:
    """The mean course of the trials that can be pruned; None with fewer than three that ended, or another budget."""
    if record is None or record.attrs.spec["budget"]["kimg"] != spec.budget.kimg:
        return None
    ended = [
        (trial.state == "COMPLETE", max(trial.intermediate, default=0) / 1000)
        for trial in record.trials
        if trial.state in ("COMPLETE", "PRUNED") and not trial.attrs.recipe
    ]
    if len(ended) < _FEWEST_ENDED:
        return None
    marks = spec.budget.marks if spec.has_rungs else ()
    return Course(
        trained=statistics.mean(1.0 if done else min(1.0, kimg / spec.budget.kimg) for done, kimg in ended),
        rungs=statistics.mean(len(marks) if done else sum(mark <= kimg for mark in marks) for done, kimg in ended),
        scored=statistics.mean(done for done, _ in ended),
    )


def _disk(spec: ResolvedStudy, home: Home, measured: list[Measured], store_bytes: int, grid: int, target: int) -> str:
    """What is kept of trials that finish, here and in MLflow's artifacts; pruned ones keep less."""
    scores = (spec.scoring.final, spec.scoring.rung)
    references = {(kind(s), s.reference, s.split): 4 * s.reference * WIDTHS[s.extractor] for s in scores}
    models = statistics.mean(m.checkpoint_bytes + m.weights_bytes for m in measured)
    grids = len(spec.budget.marks) * grid
    elsewhere = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    here = models + grids
    copies = models + grids + grid  # the last grid is logged twice
    features = sum(references.values())
    total = store_bytes + features + target * (here if elsewhere else here + copies)
    where = "and as much on the MLflow server" if elsewhere else f"and {copies / 1e6:,.1f} MB of copies for MLflow"
    return (
        f"{total / 1e9:,.2f} GB in {home.root} at most: images {store_bytes / 1e9:,.2f} GB"
        f"{'' if store_bytes else ' more'}, references {features / 1e9:,.2f} GB, {target} trials of "
        f"{here / 1e6:,.1f} MB (checkpoint, weights, sample grids) {where}"
    )


def _shown(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
