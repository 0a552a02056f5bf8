"""The tracker that everything logs through, with one that forgets and one that remembers in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

# Optuna's trial states as the tracker's run states (MLflow has no PRUNED).
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "RUNNING": "RUNNING"}


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

    def log(self, run_id: str, points: Iterable[Point], *, at_ms: int | None = None) -> None:
        """Add points to curves, in one batch, as of a time in milliseconds since 1970; None is now."""

    def image(self, run_id: str, name: str, step: int, path: Path) -> None:
        """Add a PNG file to a series of images."""

    def artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        """Keep a copy of a file or folder."""

    def end(self, run_id: str, state: str, *, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Close the run with Optuna's state of its trial, final scores, and tags."""

    def runs_by_key(self) -> dict[str, tuple[str, str]]:
        """(run id, status) of every run that was started, by key."""

    def drop_doubles(self) -> list[str]:
        """Keep one run of each key, the one with most in it; return the keys of which there were more."""

    def revive(self, run_id: str) -> bool:
        """Restore a run that a person deleted; whether it was.

        Raises:
            KeyError: it is gone for good.
        """


def finite(points: Iterable[Point]) -> list[Point]:
    """Only the points whose value is a finite number."""
    return [point for point in points if math.isfinite(point.value)]


class NullTracker:
    """Logs nothing."""

    def start(self, info: RunInfo) -> str:
        return info.key

    def log(self, run_id: str, points: Iterable[Point], *, at_ms: int | None = None) -> None:
        pass

    def image(self, run_id: str, name: str, step: int, path: Path) -> None:
        pass

    def artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        pass

    def end(self, run_id: str, state: str, *, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        pass

    def runs_by_key(self) -> dict[str, tuple[str, str]]:
        return {}

    def drop_doubles(self) -> list[str]:
        return []

    def revive(self, run_id: str) -> bool:
        return False


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

    def log(self, run_id: str, points: Iterable[Point], *, at_ms: int | None = None) -> None:
        known = {(point.name, point.step) for point in self.runs[run_id].points}
        self.runs[run_id].points += [point for point in finite(points) if (point.name, point.step) not in known]

    def image(self, run_id: str, name: str, step: int, path: Path) -> None:
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

    def drop_doubles(self) -> list[str]:
        return []

    def revive(self, run_id: str) -> bool:
        return False
