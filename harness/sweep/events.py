"""What a sweep and its workers report while they run. Workers send these to the supervisor, through a pipe or Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.errors import HarnessError
from harness.store.records import StudyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Anything that is reported. ``node`` is the Ray node that it comes from, empty elsewhere."""

    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened(Event):
    """The study is open: what it had before, and how many trials are wanted."""

    record: StudyRecord
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Said(Event):
    """A line for people."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(Event):
    """A worker has weights and reference statistics, and asks for its first trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """A worker ends with an error that a person must see."""

    error: HarnessError


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed(Event):
    """A worker's process ends because of an error that nobody foresaw."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OfTrial(Event):
    """Something about the trial of this number."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(OfTrial):
    """It begins at ``kimg``, above 0 where it continues ``retry_of``. ``params`` are what a person recognizes it by."""

    kimg: float = 0.0
    params: Mapping[str, Any] = field(default_factory=dict)
    retry_of: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed(OfTrial):
    """It has trained to ``kimg``."""

    kimg: float
    images_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(OfTrial):
    """It has a checkpoint beyond the one that it continued from."""

    kimg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring(OfTrial):
    """It is being scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored(OfTrial):
    """It has a rung score."""

    kimg: float
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(OfTrial):
    """It ended in one of Optuna's states, or paused (WAITING). ``value`` is the final score of a COMPLETE one."""

    state: str
    value: float | None = None
    reason: str = ""
