"""How much faster bfloat16 is here, in CPU time of one thread: the result is the same on a busy machine."""

from __future__ import annotations

import dataclasses
import platform
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from harness.errors import Diverged, HarnessError
from harness.gan.architecture import problems
from harness.gan.fast.graph import capture, obstacle
from harness.gan.fast.precision import BF16, FLOAT32, usual
from harness.gan.hparams import HParams
from harness.gan.run import Run
from harness.gan.trainer import Budget, Progress, train
from harness.machine.processes import cuda_graphs
from harness.scoring.extractors import untrained_module
from harness.scoring.protocol import INCEPTION

# bfloat16 must be this many times faster: a smaller gain may be noise.
MIN_GAIN = 1.1
# How long each pair is timed (s), and images in a batch.
_TIMED_S, _IMAGES = 0.6, 32


def emulates(device: torch.device) -> bool:
    """Whether bfloat16 is emulated, and several times slower: on x86 before AVX-512. It needs no timing."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    return device.type == "cpu" and x86 and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def without_graph(hp: HParams, device: str) -> str:
    """Why the steps of such a training cannot be a CUDA graph; empty where they can, or where it cannot be trained."""
    if not cuda_graphs():
        return "HARNESS_CUDA_GRAPHS=0"
    place = torch.device(device)
    try:
        run = Run(dataclasses.replace(hp, batch_size=_IMAGES), _noise(hp, place), 0, place)
    except (RuntimeError, HarnessError):
        return ""
    return obstacle(run) or capture(run)


def training_gain(hp: HParams, device: torch.device) -> float:
    """How many times faster a training step is in bfloat16 than in the usual precision; 0 if it is not timed."""
    if problems(hp) or emulates(device):
        return 0.0
    hp = dataclasses.replace(hp, batch_size=min(hp.batch_size, _IMAGES), n_dis=1)
    images = _noise(hp, device)
    try:
        before, quick = (_steps(dataclasses.replace(hp, precision=p), images, device) for p in (usual(device), BF16))
        return _gain(before, quick, device)
    except Diverged:
        return 0.0


def scoring_gain(size: int, device: torch.device) -> float:
    """How many times faster Inception is in bfloat16 on images of this size (px); 0 if it is not timed."""
    if emulates(device):
        return 0.0
    images = torch.zeros(2 if device.type == "cpu" else 64, 3, size, size, dtype=torch.uint8, device=device)
    return _gain(_features(FLOAT32, images, device), _features(BF16, images, device), device)


def _noise(hp: HParams, device: torch.device) -> Tensor:
    """Images, on the device as trainings have them: elsewhere their steps would be no graph, and bound by the host."""
    shape = (_IMAGES, hp.image_size, hp.image_size, hp.channels)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).to(device)


def _gain(before: Iterator[None], quick: Iterator[None], device: torch.device) -> float:
    """Ratio of the median times of both, which take turns; the first turn of each is a warm-up."""
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
        if isinstance(event, Progress):  # its numbers were read back, so the device has done the step
            yield


def _features(precision: str, images: Tensor, device: torch.device) -> Iterator[None]:
    module = untrained_module(INCEPTION, precision, device)
    while True:
        with torch.inference_mode():
            float(module(images)[0].sum())
        yield
