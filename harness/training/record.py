"""What a run's folder says of the run as a whole: what it is of, its scores as they come, how it ended."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from harness import atomic


class Point(NamedTuple):
    """One value of a curve at ``step`` images shown, as of ``at_ms`` (milliseconds since 1970)."""

    name: str
    value: float
    step: int
    at_ms: int


def finite(points: Iterable[Point]) -> list[Point]:
    """Only the points whose value is a finite number."""
    return [point for point in points if math.isfinite(point.value)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run is of. ``key`` identifies it: the same key again continues the same run."""

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
    """How a run ended, in Optuna's words for its trial's state. ``kimg`` is how far it had trained."""

    state: str
    scores: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    kimg: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run, but for the curve, the grids and the weights, which are files of their own.

    Attributes:
        info: what it is of.
        kimg: its budget.
        opened_ms: when it was opened last (milliseconds since 1970).
        marks: rung scores and measures of diversity, by images shown and name.
        end: None while it trains, and where its process was killed.
    """

    info: RunInfo
    kimg: float
    opened_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    marks: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    end: RunEnd | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """A record of :meth:`write`.

        Raises:
            OSError, ValueError, KeyError, TypeError: there is none.
        """
        found = json.loads(path.read_text())
        end = RunEnd(**found["end"]) if found["end"] else None
        marks = {int(step): values for step, values in found["marks"].items()}
        return cls(**{**found, "info": RunInfo(**found["info"]), "marks": marks, "end": end})

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        atomic.write_text(path, json.dumps(asdict(self)) + "\n")

    def points(self, curve: Sequence[Mapping[str, float]]) -> Iterator[Point]:
        """All curves of the run, its marks included.

        The same record gives the same points, times included: a point's time is the opening and the seconds trained.
        """
        until = self.end.kimg if self.end and self.end.kimg is not None else math.inf
        times, seconds, reached = {0: self.opened_ms}, 0.0, 0.0
        for row in curve:
            if row["kimg"] <= until:
                seconds += 1000 * (row["kimg"] - reached) / row["images_per_s"]
                reached, step = row["kimg"], round(row["kimg"] * 1000)
                times[step] = self.opened_ms + round(1000 * seconds)
                # kimg is the step already; as a metric it would be the first that MLflow's comparisons offer.
                yield from (Point(name, row[name], step, times[step]) for name in row if name != "kimg")
        for step, values in self.marks.items():
            at_ms = times[max(known for known in times if known <= step)]
            yield from (Point(name, value, step, at_ms) for name, value in values.items())
