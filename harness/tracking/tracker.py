"""The tracker that everything logs through, with one that forgets and one that remembers in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

# Optuna's trial states as the tracker's run states (MLflow has no PRUNED).
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "RUNNING": "RUNNING"}


T = TypeVar("T")


class Point(NamedTuple):
    """One value of a curve; ``step`` is thousands of images times 1000, that is, images shown."""

    name: str
    value: float
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run is about. ``key`` identifies it: starting the same key again continues the same run."""

    key: str
    name: str
    params: Mapping[str, str | int | float | bool]
    tags: Mapping[str, str]
    dataset: str = ""
    dataset_digest: str = ""
    dataset_source: str = ""


class Tracker(Protocol):
    """Every call may be repeated without doubling what it logged; values that are not finite are not logged."""

    def start(self, info: RunInfo) -> str:
        """Open a run (or the one of the same key) and return its id."""

    def log(self, run_id: str, points: Iterable[Point]) -> None:
        """Add points to curves, in one batch."""

    def image(self, run_id: str, name: str, step: int, pixels_HWC: np.ndarray) -> None:
        """Add a uint8 image to a series."""

    def artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        """Keep a copy of a file or folder."""

    def end(self, run_id: str, state: str, *, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Close the run with Optuna's state of its trial, final scores, and tags."""

    def runs_by_key(self) -> dict[str, tuple[str, str]]:
        """(run id, status) of every run that was started, by key."""


def finite(points: Iterable[Point]) -> list[Point]:
    """Only the points whose value is a finite number."""
    return [point for point in points if math.isfinite(point.value)]


class ForgivingTracker:
    """Passes everything on to another tracker; an error there is said once and stops nothing.

    What a run's tracker cannot take is lost to it, not to the study: the database and the trial's folder have it, and
    ``reconcile`` closes the run later.
    """

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.tracker, self.say = tracker, say
        self._said = False

    def start(self, info: RunInfo) -> str:
        return self._try(lambda: self.tracker.start(info), "")

    def log(self, run_id: str, points: Iterable[Point]) -> None:
        self._in_run(run_id, lambda: self.tracker.log(run_id, points))

    def image(self, run_id: str, name: str, step: int, pixels_HWC: np.ndarray) -> None:
        self._in_run(run_id, lambda: self.tracker.image(run_id, name, step, pixels_HWC))

    def artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        self._in_run(run_id, lambda: self.tracker.artifact(run_id, path, folder))

    def end(self, run_id: str, state: str, *, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        self._in_run(run_id, lambda: self.tracker.end(run_id, state, scores=scores, tags=tags))

    def runs_by_key(self) -> dict[str, tuple[str, str]]:
        return self._try(self.tracker.runs_by_key, {})

    def _in_run(self, run_id: str, action: Callable[[], None]) -> None:
        if run_id:  # empty where the run could not be started
            self._try(action, None)

    def _try(self, action: Callable[[], T], otherwise: T) -> T:
        try:
            return action()
        except Exception as error:  # whatever the tracking library raises, training goes on
            if not self._said:
                self._said = True
                self.say(f"tracking failed ({type(error).__name__}: {str(error).splitlines()[0]}); training goes on")
            return otherwise


class NullTracker:
    """Logs nothing."""

    def start(self, info: RunInfo) -> str:
        return info.key

    def log(self, run_id: str, points: Iterable[Point]) -> None:
        pass

    def image(self, run_id: str, name: str, step: int, pixels_HWC: np.ndarray) -> None:
        pass

    def artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        pass

    def end(self, run_id: str, state: str, *, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        pass

    def runs_by_key(self) -> dict[str, tuple[str, str]]:
        return {}


@dataclass(slots=True)
class MemoryRun:
    """What a MemoryTracker remembers of one run."""

    info: RunInfo
    status: str = "RUNNING"
    points: list[Point] = field(default_factory=list)
    images: list[tuple[str, int]] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class MemoryTracker:
    """Remembers in memory, for tests and for embedding the harness."""

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}

    def start(self, info: RunInfo) -> str:
        run = self.runs.setdefault(info.key, MemoryRun(info))
        run.status = "RUNNING"
        run.tags.update(info.tags)
        return info.key

    def log(self, run_id: str, points: Iterable[Point]) -> None:
        known = {(point.name, point.step) for point in self.runs[run_id].points}
        self.runs[run_id].points += [point for point in finite(points) if (point.name, point.step) not in known]

    def image(self, run_id: str, name: str, step: int, pixels_HWC: np.ndarray) -> None:
        if (name, step) not in self.runs[run_id].images:
            self.runs[run_id].images.append((name, step))

    def artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        name = f"{folder}/{path.name}" if folder else path.name
        if name not in self.runs[run_id].artifacts:
            self.runs[run_id].artifacts.append(name)

    def end(self, run_id: str, state: str, *, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        run = self.runs[run_id]
        run.status = STATUS[state]
        run.scores.update({name: value for name, value in scores.items() if math.isfinite(value)})
        run.tags.update(tags)

    def runs_by_key(self) -> dict[str, tuple[str, str]]:
        return {key: (key, run.status) for key, run in self.runs.items()}
