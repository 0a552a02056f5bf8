"""What a worker is given for all of its trials: its job, and what it has loaded for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, device

from harness.scoring.scorer import Scorer
from harness.spec.resolved import ResolvedStudy
from harness.store.trials import Trials
from harness.sweep.engines.loop import WorkerJob
from harness.sweep.events import Event
from harness.training.attempt import checkpoint_every_s
from harness.training.share import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker needs for each trial.

    Attributes:
        job: what its process was given.
        trials: the study's.
        images_NHWC: uint8, shape (N, H, W, C), on ``device`` if there is room.
        final, rung: give the scores of finished and of half-trained generators.
        follow: has a run, by the path of its record, shown in MLflow as long as the check does not raise Fenced.
        stop: whether to end.
        publish: tells the supervisor.
        real_distance: between real images, as of :func:`harness.scoring.diversity.real_distance`.
        checkpoint_s: longest time (s) between checkpoints.
        share: where workers of other machines find checkpoints.
    """

    job: WorkerJob
    trials: Trials
    images_NHWC: Tensor
    device: device
    final: Scorer
    rung: Scorer
    follow: Callable[[Path, Callable[[], None]], None]
    stop: Callable[[], bool]
    publish: Callable[[Event], None]
    real_distance: float
    checkpoint_s: float = field(default_factory=checkpoint_every_s)
    share: Share | None = None

    @property
    def spec(self) -> ResolvedStudy:
        return self.job.spec
