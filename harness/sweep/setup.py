"""What a worker is given for all of its trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, device

from harness.home import Home
from harness.scoring.scorer import Scorer
from harness.spec.study import StudySpec
from harness.store.trials import Trials
from harness.sweep.events import Event
from harness.training.loop import checkpoint_every_s
from harness.training.share import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Who shares a worker's memory: ``workers`` that of the machine, ``on_gpu`` its GPU's, itself counted.

    ``index`` is its number among the machine's workers. Number 0 stays where memory runs out.
    """

    workers: int = 1
    on_gpu: int = 1
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker needs for each trial.

    Attributes:
        home: where runs' folders are.
        trials: the study's.
        images_NHWC: uint8, shape (N, H, W, C), on ``device`` if there is room.
        follow: has a run, by the path of its record, shown in MLflow as long as the check does not raise Fenced.
        final, rung: give the scores of finished and of half-trained generators.
        dataset: its name, fingerprint and source.
        tags: of each run.
        stop: whether to end.
        publish: tells the supervisor.
        real_distance: between real images, as of :func:`harness.scoring.diversity.real_distance`.
        checkpoint_s: longest time (s) between checkpoints.
        share: where workers of other machines find checkpoints.
    """

    home: Home
    trials: Trials
    images_NHWC: Tensor
    device: device
    follow: Callable[[Path, Callable[[], None]], None]
    final: Scorer
    rung: Scorer
    dataset: Mapping[str, str]
    tags: Mapping[str, str]
    stop: Callable[[], bool]
    publish: Callable[[Event], None]
    real_distance: float
    checkpoint_s: float = field(default_factory=checkpoint_every_s)
    share: Share | None = None
    neighbours: Neighbours = Neighbours()

    @property
    def spec(self) -> StudySpec:
        return self.trials.spec
