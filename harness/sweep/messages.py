"""What a supervisor and its workers send each other: a job one way, events the other, through a pipe or Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, dataclass_transform

from harness.data.store import ImageStore, OnProgress
from harness.errors import HarnessError
from harness.home import Home
from harness.machine.provenance import code_sha256
from harness.spec.resolved import ResolvedStudy
from harness.store.records import StudyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJob:
    """Everything that a worker process is given; it can be pickled."""

    spec: ResolvedStudy
    home: Home
    store: ImageStore
    device: str
    threads: int  # of each lane
    cores: int
    tags: dict[str, str]
    lanes: int = 1  # trials at once, at most
    workers: int = 1  # on its machine
    index: int = 0  # its own number among them
    gpus: tuple[str, ...] = ()  # shared by the workers, as CUDA_VISIBLE_DEVICES names them
    own_gpu: bool = False  # Ray gave it a whole GPU
    resume_anyway: bool = False  # even under another protocol
    code: str = field(default_factory=code_sha256)  # every worker must have the same

    @property
    def on_gpu(self) -> int:
        """How many workers share its GPU, itself included."""
        n_gpus = len(self.gpus) or 1
        return 1 if self.own_gpu else len(range(self.index % n_gpus, self.workers, n_gpus))


@dataclass(frozen=True, slots=True, kw_only=True)
class Watcher:
    """What a sweep reports to, and how it learns whether to stop."""

    on_event: Callable[[Event], None]
    stop_level: Callable[[], int]  # 0: continue, 1: stop at the next checkpoint, 2: stop at once
    on_progress: OnProgress = lambda *_: None  # of preparing images

    def say(self, text: str) -> None:
        self.on_event(Said(text=text))

    def stops(self) -> bool:
        return self.stop_level() > 0


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class Event:
    """Anything that is reported; each kind is a frozen dataclass. ``node`` is the Ray node that sent it, if any."""

    node: str = ""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)


class Opened(Event):
    """The study is open: its record so far, and the number of trials wanted."""

    record: StudyRecord
    target: int


class Said(Event):
    """A line for people."""

    text: str


class Ready(Event):
    """A worker has the extractors' weights, and asks for its first trial."""


class Alive(Event):
    """Each lane of a worker has made a step of a training, or scored a batch, or waits for a trial."""


class Failed(Event):
    """A worker ends with an error for the user."""

    error: HarnessError


class Crashed(Event):
    """A worker's process ends because of an unexpected error."""

    text: str


class OfTrial(Event):
    """Something about the trial of this number."""

    number: int


class Started(OfTrial):
    """It starts at ``kimg``, above 0 if it continues ``retry_of``. ``params`` are its parameters, to show."""

    kimg: float = 0.0
    params: Mapping[str, Any] = field(default_factory=dict)
    retry_of: int | None = None


class Progressed(OfTrial):
    kimg: float
    images_per_s: float


class Saved(OfTrial):
    """It has a newer checkpoint than the one that it continued from."""

    kimg: float


class Scoring(OfTrial):
    """It is being scored."""


class Scored(OfTrial):
    """It has a rung score."""

    kimg: float
    score: float


class Ended(OfTrial):
    """It ended in one of Optuna's states, or paused (WAITING). ``value`` is the final score of a COMPLETE one."""

    state: str
    value: float | None = None
    reason: str = ""
