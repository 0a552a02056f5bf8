"""The folder of one run, a trial's attempt or a single training: its files and its record."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from harness import atomic


class RunFolder:
    """Names and finds the files of a run; creates nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Rows of losses and gradients. Copied to a share last: a folder there with a curve is complete.
        self.curve = path / "curve.json"
        self.weights = path / "generator.safetensors"
        self.discriminator = path / "discriminator.safetensors"
        self.hparams = path / "hparams.json"
        self.summary = path / "training.json"  # a single training's; a trial has its row in the database instead
        self.audit = path / "audit.json"
        self.nearest = path / "nearest.png"  # of `harness audit`: samples next to their nearest training images
        # Of a single training: a grid of real images, and a walk between latents.
        self.real, self.walk = path / "real.png", path / "walk.png"
        self.lock = path / ".lock"

    def record(self, kimg: float) -> Path:
        """The record of the run to ``kimg``; a single training has one for each length that it was continued to."""
        return self.path / f"run-{kimg:.6g}.json"

    def records(self) -> list[Path]:
        return sorted(self.path.glob("run-*.json"))

    def grid(self, kimg: float) -> Path:
        return self.path / f"grid-{round(kimg * 1000):09d}.png"

    def grids(self) -> list[Path]:
        return sorted(self.path.glob("grid-*.png"))

    def frame(self, kimg: float) -> Path:
        """Samples of the same z at every mark, if the grids have a fresh one each."""
        return self.path / f"frame-{round(kimg * 1000):09d}.png"

    def frames(self) -> list[Path]:
        """Samples of one z along the training."""
        return sorted(self.path.glob("frame-*.png")) or self.grids()

    def checkpoint(self, step: int) -> Path:
        return self.path / f"snapshot-{step:09d}.pt"

    def checkpoints(self) -> list[Path]:
        """All checkpoints except those that were found damaged, newest first."""
        return sorted(self.path.glob("snapshot-*.pt"), reverse=True)

    def results(self) -> list[Path]:
        """What other machines need of a finished run, in the order of copying."""
        made = {path for path in self.path.iterdir() if path.suffix in (".png", ".json", ".safetensors")}
        return sorted(made - set(self.records()), key=lambda path: self.order(path.name))

    def order(self, name: str) -> tuple[bool, str]:
        """A sort key of file names in the order of copying: the curve is last."""
        return name == self.curve.name, name

    def read_curve(self) -> list[dict[str, float]]:
        """The rows of the curve; none if it is missing or damaged."""
        return list(_read(self.curve, list) or [])

    def read_audit(self) -> dict[str, Any] | None:
        """What `harness audit` found; None if it was not run, or its file is damaged."""
        content: dict[str, Any] | None = _read(self.audit, dict)
        return content

    def read_summary(self) -> dict[str, Any]:
        """Settings and scores of a single training; OSError before it is finished."""
        summary: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        return summary


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, kind) else None


def grid_kimg(path: Path) -> float:
    """How far the training was (kimg) when this grid or frame was drawn."""
    return int(path.stem.partition("-")[2]) / 1000


class Point(NamedTuple):
    """One value of a curve at ``step`` images shown; ``at_ms`` is its time (milliseconds since 1970)."""

    name: str
    value: float
    step: int
    at_ms: int


def finite(points: Iterable[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.value)]


def named_marks(
    rung_metric: str, rungs: Mapping[int, float], watched: Mapping[int, Mapping[str, float]]
) -> dict[int, dict[str, float]]:
    """Rung scores, and measures of diversity by name, as the marks of a record."""
    scores = {step: {rung_metric: score} for step, score in rungs.items()}
    return scores | {step: {**scores.get(step, {}), **values} for step, values in watched.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run is about. A run with the same ``key`` continues it."""

    key: str
    name: str
    experiment: str
    params: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: str = ""
    dataset_digest: str = ""
    dataset_source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How a run ended. ``state`` is Optuna's for its trial; ``kimg`` is how far it had trained."""

    state: str
    scores: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    kimg: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run to ``kimg``, without curve, grids and weights, which are separate files.

    ``marks`` are rung scores and measures of diversity, by images shown and name; ``end`` is None while it trains.
    """

    info: RunInfo
    kimg: float
    opened_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    marks: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    end: RunEnd | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record of :meth:`write`; OSError, ValueError, KeyError or TypeError if it is something else."""
        content = json.loads(path.read_text(encoding="utf-8"))
        end = RunEnd(**content["end"]) if content["end"] else None
        marks = {int(step): values for step, values in content["marks"].items()}
        return cls(**{**content, "info": RunInfo(**content["info"]), "marks": marks, "end": end})

    def write(self, path: Path) -> None:
        atomic.write_text(path, json.dumps(asdict(self)) + "\n")

    def points(self, curve: Sequence[Mapping[str, float]]) -> Iterator[Point]:
        """All points of the run's curves and marks.

        The same record gives the same points: a point's time is the opening plus the seconds trained.
        """
        until = self.end.kimg if self.end and self.end.kimg is not None else math.inf
        times, seconds, reached = {0: self.opened_ms}, 0.0, 0.0
        for row in curve:
            if row["kimg"] <= until:
                seconds += 1000 * (row["kimg"] - reached) / row["images_per_s"]
                reached, step = row["kimg"], round(row["kimg"] * 1000)
                times[step] = self.opened_ms + round(1000 * seconds)
                # kimg is the step; as a metric it would come first in MLflow's comparisons.
                yield from (Point(name, row[name], step, times[step]) for name in row if name != "kimg")
        for step, values in self.marks.items():
            at_ms = times[max(known for known in times if known <= step)]
            yield from (Point(name, value, step, at_ms) for name, value in values.items())
