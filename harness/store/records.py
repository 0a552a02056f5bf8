"""A study and its trials as plain values, as the database has them: what reports and reconciling read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from harness.store.attrs import StudyAttrs, TrialAttrs


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
    attrs: TrialAttrs
    started: datetime | None
    ended: datetime | None

    @property
    def seconds(self) -> float:
        """Seconds to the end by the worker's stopwatch, of a killed one to its last checkpoint; 0 while unfinished."""
        if self.attrs.elapsed_s is not None:
            return max(self.attrs.elapsed_s, self.attrs.saved_s)  # killed after it was paused: to its last checkpoint
        if self.state == "FAIL":  # it ended when it was found dead, which may be days later
            return self.attrs.saved_s
        return max(0.0, (self.ended - self.started).total_seconds()) if self.started and self.ended else 0.0

    @property
    def paused_kimg(self) -> float | None:
        """At which rung it waits to be promoted; None where it does not."""
        at = self.attrs.paused_at
        return None if at is None or self.state != "WAITING" else at / 1000

    @property
    def published(self) -> bool:
        """Whether its settings are somebody's published ones: a recipe's, or the paper's."""
        return bool(self.attrs.recipe) or self.attrs.preset == "paper"

    @property
    def root(self) -> int:
        """Number of the first of the attempts that it is one of."""
        return self.number if self.attrs.root is None else self.attrs.root

    @property
    def training_seed(self) -> int:
        """Of a fixed study's trial."""
        assert self.attrs.training_seed is not None
        return self.attrs.training_seed

    @property
    def reason(self) -> str:
        return self.attrs.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """A study with its trials in order of number."""

    name: str
    attrs: StudyAttrs
    trials: tuple[TrialRecord, ...]

    @property
    def complete(self) -> list[TrialRecord]:
        """Trials with a final score, best first; ties go to the earlier one."""
        done = [trial for trial in self.trials if trial.state == "COMPLETE" and trial.value is not None]
        return sorted(done, key=lambda trial: (trial.value, trial.number))

    def attempts(self, trial: TrialRecord) -> list[TrialRecord]:
        """The trial with those that it continues, and those that continue it."""
        return [other for other in self.trials if other.root == trial.root]

    def seconds(self, trial: TrialRecord) -> float:
        """Of all its attempts."""
        return sum(attempt.seconds for attempt in self.attempts(trial))

    @property
    def best(self) -> TrialRecord | None:
        return self.complete[0] if self.complete else None
