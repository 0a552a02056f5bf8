"""A study and its trials as plain values, as the database has them: what reports and reconciling read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial. ``state`` is Optuna's name of it; ``intermediate`` maps images shown to the rung score.

    ``value`` is the score, the first of ``values``, which are those of all objectives.
    """

    number: int
    state: str
    value: float | None
    values: tuple[float, ...] = ()
    params: Mapping[str, Any]
    intermediate: Mapping[int, float]
    attrs: Mapping[str, Any]
    started: datetime | None
    ended: datetime | None

    @property
    def seconds(self) -> float:
        """Seconds to the end by the worker's stopwatch, of a killed one to its last checkpoint; 0 while unfinished."""
        if "elapsed_s" in self.attrs:
            return float(self.attrs["elapsed_s"])
        if self.state == "FAIL":  # it ended when it was found dead, which may be days later
            return float(self.attrs.get("saved_s", 0.0))
        return max(0.0, (self.ended - self.started).total_seconds()) if self.started and self.ended else 0.0

    @property
    def published(self) -> bool:
        """Whether its settings are somebody's published ones: a recipe's, or the paper's."""
        return "recipe" in self.attrs or self.attrs.get("preset") == "paper"

    @property
    def reason(self) -> str:
        return str(self.attrs.get("reason", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """A study with its trials in order of number."""

    name: str
    attrs: Mapping[str, Any]
    trials: tuple[TrialRecord, ...]

    @property
    def complete(self) -> list[TrialRecord]:
        """Trials with a final score, best first; ties go to the earlier one."""
        done = [trial for trial in self.trials if trial.state == "COMPLETE" and trial.value is not None]
        return sorted(done, key=lambda trial: (trial.value, trial.number))

    def attempts(self, trial: TrialRecord) -> list[TrialRecord]:
        """The trial with those that it continues, and those that continue it."""
        root = trial.attrs.get("root", trial.number)
        return [other for other in self.trials if other.attrs.get("root", other.number) == root]

    def seconds(self, trial: TrialRecord) -> float:
        """Of all its attempts."""
        return sum(attempt.seconds for attempt in self.attempts(trial))

    @property
    def best(self) -> TrialRecord | None:
        return self.complete[0] if self.complete else None
