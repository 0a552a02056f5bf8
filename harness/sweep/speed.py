"""Which arithmetic is sooner on this machine: found out when a study starts, and kept for all of its trials."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import Diverged, UsageError
from harness.gan.precision import BF16, FLOAT32, usual
from harness.gan.trainer import Budget, Progress, train
from harness.scoring.extractors import placed, untrained_module
from harness.scoring.protocol import INCEPTION
from harness.study.architecture import problems
from harness.study.hparams import HParams
from harness.study.spec import StudySpec
from harness.sweep.processes import cuda_graphs, exact_arithmetic

# bfloat16 must be sooner by this factor: less may be noise.
_PAYS = 1.1
# How long each pair is timed (s), and a batch that shows it.
_TIMED_S, _IMAGES = 0.6, 32


def settle(spec: StudySpec, device: str, *, exact: bool, say: Callable[[str], None]) -> StudySpec:
    """The study with every precision that its file leaves open.

    Rungs are scored in bfloat16 where that is sooner: it changes no order (docs/performance.md). Trainings are float32,
    on CUDA in TF32 (docs/decisions/0010-tf32-on-cuda.md). bfloat16 is only offered.

    Args:
        spec: as the file has it.
        device: where it will run; timed on one thread, in CPU time, so that a busy machine decides alike.
        exact: float32 throughout, also where the file says otherwise.
        say: told what was found.

    Raises:
        UsageError: exact, and the precision is searched.
    """
    if exact and "precision" in spec.space:
        raise UsageError(
            f"{spec.name} searches precision, and --exact is float32 throughout",
            "Take [space.precision] out of the file, or leave --exact away.",
        )
    if exact:
        return _with(spec, training=FLOAT32, rung=FLOAT32)
    place = torch.device(device)
    exact_arithmetic()
    training = rung = None
    if spec.fixed.precision is None and "precision" not in spec.space:
        training, gain = usual(place), training_gain(_typical(spec), place)
        if gain >= _PAYS:
            say(f'training in bfloat16 would be {gain:.1f} times sooner here: precision = "bf16" in [fixed]')
    if spec.scoring.rung.precision is None:
        quick = spec.scoring.rung.extractor == INCEPTION and scoring_gain(spec.data.image_size, place) >= _PAYS
        rung = BF16 if quick else FLOAT32
    return _with(spec, training=training, rung=rung)


def adopt(spec: StudySpec, stored: Mapping[str, Any]) -> StudySpec:
    """The study with the precisions that its file leaves open as they were when it was started.

    Args:
        spec: as the file has it.
        stored: the :meth:`StudySpec.identity` in the database.
    """
    training, rung = stored["fixed"].get("precision"), stored["scoring"]["rung"].get("precision")
    return _with(
        spec,
        training=training if spec.fixed.precision is None else None,
        rung=rung if spec.scoring.rung.precision is None else None,
    )


def training_gain(hp: HParams, device: torch.device) -> float:
    """How many times sooner a training step is in bfloat16 than as usual; 0 where that cannot be told."""
    if problems(hp):
        return 0.0
    hp = dataclasses.replace(hp, batch_size=min(hp.batch_size, _IMAGES), n_dis=1)
    shape = (_IMAGES, hp.image_size, hp.image_size, hp.channels)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    try:
        before, quick = (_steps(dataclasses.replace(hp, precision=p), images, device) for p in (usual(device), BF16))
        return _gain(before, quick, device)
    except Diverged:
        return 0.0


def scoring_gain(size: int, device: torch.device) -> float:
    """How many times sooner Inception is in bfloat16 on images of this size (px)."""
    images = torch.zeros(2 if device.type == "cpu" else 64, 3, size, size, dtype=torch.uint8, device=device)
    return _gain(_features(FLOAT32, images, device), _features(BF16, images, device), device)


def _gain(before: Iterator[None], quick: Iterator[None], device: torch.device) -> float:
    """Ratio of the medians of turns taken one after the other, the first of each a warm-up."""
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    turns: tuple[tuple[Iterator[None], list[float]], ...] = ((before, []), (quick, []))
    try:
        for turn, _ in turns:
            next(turn)
        began = time.perf_counter()
        while len(turns[0][1]) < 3 or time.perf_counter() - began < _TIMED_S:
            for turn, took in turns:
                start = clock()
                next(turn)
                took.append(clock() - start)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(turns[0][1]) / statistics.median(turns[1][1])


def _steps(hp: HParams, images: Tensor, device: torch.device) -> Iterator[None]:
    step_kimg = hp.images_per_step / 1000
    budget = Budget(kimg=10_000 * step_kimg, progress_kimg=step_kimg)
    for event in train(hp, images, budget=budget, seed=0, device=device, graph=cuda_graphs()):
        if isinstance(event, Progress):  # its numbers were read back: the device has done the step
            yield


def _features(precision: str, images: Tensor, device: torch.device) -> Iterator[None]:
    module = placed(untrained_module(INCEPTION, precision), INCEPTION, precision, device)
    while True:
        with torch.inference_mode():
            float(module(images)[0].sum())
        yield


def _typical(spec: StudySpec) -> HParams:
    """One configuration of the space: of each parameter that is always searched, its first or lowest value."""
    return spec.hparams({name: param.examples[0] for name, param in spec.space.items() if not param.when})


def _with(spec: StudySpec, *, training: str | None, rung: str | None) -> StudySpec:
    fixed, scoring = spec.fixed, spec.scoring
    if training is not None and "precision" not in spec.space:
        fixed = fixed.model_copy(update={"precision": training})
    if rung is not None:
        scoring = scoring.model_copy(update={"rung": scoring.rung.model_copy(update={"precision": rung})})
    return spec.model_copy(update={"fixed": fixed, "scoring": scoring})
