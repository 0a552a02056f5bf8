"""The training loop: yields progress and snapshots; its caller decides to log, score, save or stop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.gan.fast.graph import capture, obstacle
from harness.gan.hparams import HParams
from harness.gan.run import Run, Snapshot, smallest_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long to train, and when to stop for a snapshot, in kimg (thousands of real images shown).

    A snapshot at 0 is of the untrained networks.
    Progress comes every ``progress_kimg``; None is every kimg, or twenty times in a training shorter than 20 kimg.
    """

    kimg: float
    snapshots_kimg: tuple[float, ...] = ()
    progress_kimg: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Means over the steps since the last Progress. ``step`` counts generator updates."""

    step: int
    kimg: float
    curve: dict[str, float]
    images_per_s: float


def epoch_kimg(hp: HParams, n_images: int) -> float:
    """Length of one pass over ``n_images`` images (kimg); a smaller last batch, where it is used, counts as full."""
    whole, rest = divmod(n_images, hp.batch_size)
    return (whole + (rest >= smallest_batch(hp))) * hp.batch_size / 1000


def train(
    hp: HParams,
    images_NHWC: Tensor,
    *,
    budget: Budget,
    seed: int,
    device: torch.device,
    resume: dict[str, Any] | None = None,
    snapshot_now: Callable[[], bool] = lambda: False,
    graph: bool = True,
    compiles: bool = False,
) -> Iterator[Progress | Snapshot]:
    """Train a DCGAN on uint8 images; the same seed on the same device gives the same result.

    Per step: ``n_dis`` discriminator updates, each on a new real batch, then one generator update (Goodfellow et al.
    2014, algorithm 1, with Adam). With ``g_noise="reuse"`` that is on the last fake batch, whose gradient is exact,
    because the generator has not changed in between; with ``fresh`` on new noise. With ``update_order="g_first"`` the
    generator's update comes before the discriminator's, the first of which sees the same images.

    Images of shape (N, H, W, C) are in memory, memory-mapped, or on the device already. ``resume`` is the ``state`` of
    a Snapshot of the same configuration and seed. On CUDA, steps are a CUDA ``graph`` where that can be done; a warning
    says where it cannot. With ``compiles`` Inductor merges its operations first, which takes up to a minute.

    Progress comes about every ``progress_kimg``, then a Snapshot where ``snapshot_now`` says yes; a Snapshot at each
    mark and at the end. Resuming at a mark yields its Snapshot again. Diverged is raised where a gradient was not
    finite: the step was not applied; the check is made on the device and read back with the next event.
    """
    run = Run(hp, images_NHWC, seed, device)
    if resume is not None:
        run.load(resume)
    if graph and device.type == "cuda":
        reason = obstacle(run) or capture(run, compiles=compiles)
        if reason:
            warnings.warn(f"training without a CUDA graph: {reason}", stacklevel=2)
    last = hp.updates(budget.kimg)
    marks: dict[int, list[float]] = {}
    for mark in [mark for mark in budget.snapshots_kimg if mark < budget.kimg] + [budget.kimg]:
        # Marks closer than a large batch fall on one step; each is answered.
        marks.setdefault(hp.updates(mark) if mark else 0, []).append(mark)
    interval = budget.progress_kimg or min(1.0, budget.kimg / 20)
    every = max(1, round(interval * 1000 / hp.images_per_step))
    for mark in marks.get(run.step, ()):  # where it resumes, an interrupted caller may not have acted on it
        yield run.snapshot(mark)
    started, since = time.perf_counter(), run.step
    while run.step < last:
        run.advance()
        reached, reports = marks.get(run.step, ()), run.step % every == 0 or run.step == last
        if reports:
            curve = run.read_window()
            rate = (run.step - since) * hp.images_per_step / (time.perf_counter() - started)
            yield Progress(step=run.step, kimg=run.kimg, curve=curve, images_per_s=rate)
            if not reached and snapshot_now():
                yield run.snapshot(None)
        for mark in reached:
            yield run.snapshot(mark)
        if reports or reached:
            started, since = time.perf_counter(), run.step
