"""What a sweep would take: time, memory and disk, from a few measured steps. Nothing is written."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from torch import Tensor

from harness.data.store import existing_store, find_material
from harness.errors import DataError, Diverged
from harness.gan.networks import Discriminator, Generator, build
from harness.gan.precision import FLOAT32
from harness.gan.trainer import Budget, Progress, train
from harness.home import Home
from harness.scoring.extractors import untrained_module
from harness.scoring.sampling import BATCH, generate
from harness.study.architecture import problems
from harness.study.hparams import HParams
from harness.study.scoring import ScoreSpec
from harness.study.spec import StudySpec
from harness.study.suggest import suggest
from harness.sweep.engines.local import threads_per_worker
from harness.sweep.processes import exact_arithmetic, usable_cores
from harness.sweep.run import choose_device, require_images
from harness.sweep.speed import settle

# Steps of one configuration: the first warms up and is not counted.
_STEPS = 4
# Configurations drawn from the space, and no new measurement after so many seconds.
_DRAWN, _ENOUGH_S = 4, 90.0
# Files decoded to find out how fast that goes.
_FILES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One configuration's speed and size. ``s_per_kimg`` is of training, ``s_per_sample`` of generating, alone."""

    name: str
    s_per_kimg: float
    s_per_sample: float
    parameters: int
    generator_parameters: int
    baseline: bool


def plan(
    spec: StudySpec,
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
    exact_arithmetic()
    place = torch.device(choose_device(device))
    if place.type == "cpu":  # what each worker will have
        torch.set_num_threads(threads_per_worker(usable_cores(), workers))
    spec = settle(spec, place.type, exact=exact, say=lambda text: None)
    images, n_images, store_bytes, prepare_s = _images(spec, home, source, say)
    set_bytes = n_images * int(np.prod(images.shape[1:])) if place.type == "cuda" else 0
    images = images[: max(spec.largest_batch(), _FILES)].to(place)
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
    for found in _configurations(spec, images, place):
        measured.append(found)
        yield (
            f"  {found.name}",
            f"{1 / found.s_per_kimg * 1000:,.0f} images/s, {found.parameters / 1e6:,.2f} M parameters",
        )
    if not measured:
        raise DataError("none of the tried configurations trains on these images", "Each of them diverged at once.")
    rates = {kind: _scoring_rate(*kind, spec.data.image_size, place) for kind in _extractors(spec)}
    for (name, precision), rate in rates.items():
        yield f"  {name} {precision}", f"{rate:,.1f} images/s"
    target = trials or spec.budget.trials
    yield "time", _time(spec, measured, rates, target, place, workers)
    peak = _peak_bytes(place) + set_bytes  # workers keep the whole set on the GPU where it fits
    where = "GPU memory" if place.type == "cuda" else "memory"
    note = f", {peak * workers / 1e9:,.1f} GB with {workers} workers" if workers > 1 else ""
    yield "memory", f"{peak / 1e9:,.1f} GB of {where} a worker{note} (peak of these measurements)"
    checkpoints = statistics.mean(4 * (2 * 3 * m.parameters + 2 * m.generator_parameters) for m in measured)
    yield (
        "disk",
        (
            f"{(store_bytes + checkpoints * target) / 1e9:,.2f} GB in {home.root}: images {store_bytes / 1e9:,.2f} GB"
            f"{'' if store_bytes else ' more'}, {target} trials of {checkpoints / 1e6:,.0f} MB"
        ),
    )
    share = f", {torch.get_num_threads()} threads each" if place.type == "cpu" else ", which share the device"
    yield "cores", f"{usable_cores()}, {place.type}; {workers} worker{'s' * (workers != 1)}{share}"


def _images(
    spec: StudySpec, home: Home, source: Path | None, say: Callable[[str], None]
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


def _configurations(spec: StudySpec, images: Tensor, place: torch.device) -> Iterator[Measured]:
    """Presets, and random draws from the space, as long as there is time."""
    started = time.perf_counter()
    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=spec.sampler.seed))
    optuna.logging.set_verbosity(quiet)
    drawn = [(f"random {index + 1}", suggest(study.ask(), spec), False) for index in range(_DRAWN)]
    presets = [(p.name, spec.hparams(p.params, p.overrides), p.recipe is not None) for p in spec.presets]
    # In turn, so that both kinds are among the measured ones where time runs out.
    mixed = [pair for pairs in zip(drawn, presets, strict=False) for pair in pairs]
    rest = [item for item in (*presets, *drawn) if item not in mixed]
    for name, hp, baseline in (*mixed, *rest):
        if time.perf_counter() - started > _ENOUGH_S:
            return
        rate = _training_rate(hp, images, place)
        if rate:
            g, d = _parameters(hp)
            yield Measured(
                name=name,
                s_per_kimg=1000 / rate,
                s_per_sample=_sampling_s(hp, place),
                parameters=g + d,
                generator_parameters=g,
                baseline=baseline,
            )


def _training_rate(hp: HParams, images: Tensor, place: torch.device) -> float:
    """Images per second; 0 where there is no such network, or it diverges within the few steps."""
    if problems(hp):
        return 0.0
    step_kimg = hp.images_per_step / 1000
    budget = Budget(kimg=_STEPS * step_kimg, progress_kimg=step_kimg)
    try:
        events = list(train(hp, images, budget=budget, seed=0, device=place))
    except Diverged:
        return 0.0
    return statistics.median([event.images_per_s for event in events if isinstance(event, Progress)][1:])


def _sampling_s(hp: HParams, place: torch.device) -> float:
    """Seconds to generate one image for scoring."""
    generator, _ = build(hp, 0, place)
    generate(generator, hp, BATCH, 0, place)
    started = time.perf_counter()
    generate(generator, hp, BATCH, 0, place)
    return (time.perf_counter() - started) / BATCH


def _parameters(hp: HParams) -> tuple[int, int]:
    with torch.device("meta"):
        networks = Generator(hp), Discriminator(hp)
    g, d = (sum(parameter.numel() for parameter in network.parameters()) for network in networks)
    return g, d


def _extractors(spec: StudySpec) -> list[tuple[str, str]]:
    return sorted({_kind(spec.scoring.final), _kind(spec.scoring.rung)})


def _kind(score: ScoreSpec) -> tuple[str, str]:
    return score.extractor, score.precision or FLOAT32


def _scoring_rate(name: str, precision: str, size: int, place: torch.device) -> float:
    module = untrained_module(name, precision).to(place)
    batch = torch.zeros(BATCH, 3, size, size, dtype=torch.uint8, device=place)
    with torch.inference_mode():
        module(batch[:2])
        started = time.perf_counter()
        float(module(batch)[0].sum())  # reading a value waits for the device
    return BATCH / (time.perf_counter() - started)


def _time(
    spec: StudySpec,
    measured: list[Measured],
    rates: dict[tuple[str, str], float],
    target: int,
    place: torch.device,
    workers: int,
) -> str:
    def scoring_s(score: ScoreSpec) -> float:
        return score.samples * (1 / rates[_kind(score)] + statistics.mean(m.s_per_sample for m in measured))

    rungs = len(spec.budget.rungs) + 1
    scored = rungs * scoring_s(spec.scoring.rung) + scoring_s(spec.scoring.final)
    baselines = {m.name: m.s_per_kimg * spec.budget.kimg for m in measured if m.baseline}
    searched = [m.s_per_kimg * spec.budget.kimg for m in measured if not m.baseline]
    typical = statistics.mean(searched or list(baselines.values()))
    named = [p.name for p in spec.presets if p.recipe][:target]
    training = [baselines.get(name, typical) for name in named] + [typical] * (target - len(named))
    references = {(_kind(s), s.reference, s.split) for s in (spec.scoring.final, spec.scoring.rung)}
    once = sum(n / rates[kind] for kind, n, _ in references)
    # Each was measured with a worker's threads; more workers than cores, or several on one GPU, are no sooner.
    at_once = min(workers, usable_cores(), target) if place.type == "cpu" else 1
    total = (sum(training) + target * scored) / at_once + once
    pruned = (
        ""
        if spec.pruner.name == "none"
        else f"; less what the pruner ({spec.pruner.name}) saves, more or less as the drawn configurations are typical"
    )
    together = f", {at_once} trials at once" if at_once > 1 else ""
    return (
        f"about {_shown(total)} on this {place.type}{together}: a trial trains {_shown(typical)} and scores "
        f"{_shown(scored)}, references once {_shown(once)}{pruned}"
    )


def _peak_bytes(place: torch.device) -> int:
    if place.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def _shown(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
