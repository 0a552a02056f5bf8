"""MLflow's part in memory, for tests of what is shown and not of MLflow; `contract/test_trackers.py` checks both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.home import Home
from harness.store.trials import Trials
from harness.sweep.reconcile import reconcile_tracker
from harness.tracking.mirror import Reflection
from harness.tracking.mlflow import STATUS
from harness.training.run_folder import Point, RunInfo, finite


@dataclass(slots=True)
class MemoryRun:
    info: RunInfo
    status: str = "RUNNING"
    points: list[Point] = field(default_factory=list)
    images: list[tuple[str, int]] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def values(self) -> list[tuple[str, float, int]]:
        """The points without their times."""
        return [(point.name, point.value, point.step) for point in self.points]


class MemoryTracker:
    """As :class:`harness.tracking.mlflow.MlflowTracker`; a run's id is its key."""

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}

    def start(self, info: RunInfo, known: str = "") -> str:
        run = self.runs.setdefault(info.key, MemoryRun(info))
        run.status = "RUNNING"
        run.tags.update(info.tags)
        return info.key

    def log(self, run_id: str, points: Iterable[Point]) -> None:
        known = {(point.name, point.step) for point in self.runs[run_id].points}
        new = [point for point in finite(points) if (point.name, point.step) not in known]
        self.runs[run_id].points += new

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


def show(home: Home, tracker: MemoryTracker) -> None:
    """Have all that the runs' folders record in the tracker, as a worker's mirror does."""
    for path in sorted(home.root.glob("trials/*/*/*/run-*.json")):
        Reflection(path).send(tracker)


def reconcile(trials: Trials, tracker: MemoryTracker, home: Home, *, crashed: bool = True) -> list[str]:
    """As a start does it: the database first, then MLflow."""
    return trials.heal(crashed=crashed) + reconcile_tracker(trials.study, tracker, home)
