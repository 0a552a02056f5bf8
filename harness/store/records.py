"""Studies and trials as plain values, and their attributes in the database, which are named only here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import partial
from typing import Any, Self

from harness.gan.hparams import generator_updates


class _Attrs:
    """Values that remember which of them were given: these are written, even if they equal their defaults."""

    __slots__ = ("given",)
    given: frozenset[str]

    def __new__(cls, **values: Any) -> Self:
        attrs = super().__new__(cls)
        object.__setattr__(attrs, "given", frozenset(values))
        return attrs

    def __reduce__(self) -> tuple[partial[Self], tuple[()]]:
        return partial(type(self), **{name: getattr(self, name) for name in self.given}), ()

    @classmethod
    def parse(cls, stored: Mapping[str, Any]) -> Self:
        """Read the attributes from the database's, without those that this version does not know.

        A missing one, or a null of an older version, has its default.
        """
        values = {}
        for stored_name, value in stored.items():
            name = _FIELDS[cls].get(stored_name)
            if name is not None and value is not None:
                values[name] = _PARSERS[name](value) if name in _PARSERS else value
        return cls(**values)

    def stored(self) -> dict[str, Any]:
        """The given attributes in the database's form."""
        return {
            stored_name: _WRITERS[name](getattr(self, name)) if name in _WRITERS else getattr(self, name)
            for stored_name, name in _FIELDS[type(self)].items()
            if name in self.given
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialAttrs(_Attrs):
    """What the database knows of a trial, in addition to Optuna's own fields."""

    # What it trains: a preset; a published system (recipe), with how that prepares its images; in a fixed study a
    # configuration (arm) and seed.
    preset: str = ""
    recipe: str = ""
    variant: str = ""
    own_images: str = ""
    arm: str = ""
    training_seed: int | None = None
    # Hyperparameters of a recipe or an arm, which replace the study's fixed ones.
    overrides: Mapping[str, Any] | None = None
    hparams: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    # The run's folder, relative to the home folder.
    folder: str = ""
    # Position in the search; a retry has that of the trial that it continues.
    position: int | None = None
    # Numbers of the trial that it continues, and of the first attempt.
    retry_of: int | None = None
    root: int | None = None
    # How many workers died in a row without getting further.
    crashes: int = 0
    # Whether it ran out of memory once, next to other trials.
    oom: bool = False
    # The step of the rung from which it last continued, and of the rung where it waits to be promoted.
    kept_at: int | None = None
    paused_at: int | None = None
    # The process that runs it.
    worker: Mapping[str, Any] | None = None
    # The newest checkpoint, the seconds until it was written, and where this attempt began.
    saved_kimg: float = 0.0
    saved_s: float = 0.0
    resumed_kimg: float = 0.0
    # By images shown: measures of the samples' diversity, and seconds trained.
    watched: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    rung_seconds: Mapping[int, float] = field(default_factory=dict)
    elapsed_s: float | None = None
    # Why it ended as it did.
    reason: str = ""
    # A gradient was not finite (at this generator update), or the images could not be scored.
    diverged: bool = False
    diverged_step: int | None = None
    # Final scores by metric, and why others are missing; the score with each sampling seed.
    scores: Mapping[str, float] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    samplings: Sequence[float] = ()
    protocol_hash: str = ""
    score_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyAttrs(_Attrs):
    """What the database knows of a study, in addition to Optuna's own fields."""

    # Distinguishes studies of the same name. Written first: without it, a study is another program's.
    uid: str = ""
    # The study file when the study was started.
    spec: Mapping[str, Any] = field(default_factory=dict)
    spec_hash: str = ""
    description: str = ""
    # Name, source, number and fingerprint of the images.
    dataset: Mapping[str, Any] = field(default_factory=dict)
    # Trials wanted, and workers of the newest start, on which the order of trials depends.
    target: int = 0
    workers: int = 0
    # Versions and machine of the newest start.
    environment: Mapping[str, str] = field(default_factory=dict)
    final_metric: str = ""
    rung_metric: str = ""
    # For each kind of score: everything that its meaning depends on.
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # Trials of earlier studies that the sampler starts from: parameters and merit, the best first.
    lessons: Sequence[tuple[Mapping[str, Any], float]] = ()
    mlflow_experiment: str = ""
    mlflow_parent: str = ""


def is_of_harness(user_attrs: Mapping[str, Any]) -> bool:
    """Whether a study has attributes that this harness wrote; early versions wrote no ``uid``."""
    try:
        spec = json.loads(user_attrs.get("spec", "{}"))
    except (TypeError, ValueError):
        return False
    named = all(isinstance(user_attrs.get(name, ""), str) for name in ("uid", "spec_hash"))
    marked = named and ("uid" in user_attrs or "spec_hash" in user_attrs)
    return marked and isinstance(spec, dict) and (not spec or spec.keys() >= {"data", "fixed", "budget", "scoring"})


def stored_position(user_attrs: Mapping[str, int | None]) -> int | None:
    """A trial's position alone, fast enough for loops over thousands of trials."""
    return user_attrs.get(_POSITION)


def stored_retry_of(user_attrs: Mapping[str, int | None]) -> int | None:
    """Only the number of the trial that it continues, for such loops."""
    return user_attrs.get("retry_of")


def _by_step(stored: Mapping[str, Any]) -> dict[int, Any]:
    return {int(step): value for step, value in stored.items()}


def _by_text(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(step): value for step, value in sorted(values.items())}


_POSITION = "place"
# Field names by stored names; only the position's differ.
_FIELDS: dict[type, dict[str, str]] = {
    kind: {_POSITION if own.name == "position" else own.name: own.name for own in fields(kind)}
    for kind in (TrialAttrs, StudyAttrs)
}
_PARSERS: dict[str, Any] = {"watched": _by_step, "rung_seconds": _by_step, "spec": json.loads}
_WRITERS: dict[str, Any] = {"watched": _by_text, "rung_seconds": _by_text, "spec": json.dumps}


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
        """Seconds to the end, measured by the worker; of a killed trial to its last checkpoint; 0 while unfinished."""
        if self.attrs.elapsed_s is not None:
            return max(self.attrs.elapsed_s, self.attrs.saved_s)  # killed after it was paused: to its last checkpoint
        if self.state == "FAIL":  # it may have been found dead days later
            return self.attrs.saved_s
        return max(0.0, (self.ended - self.started).total_seconds()) if self.started and self.ended else 0.0

    @property
    def paused_kimg(self) -> float | None:
        """The rung where it waits to be promoted, or waited until the study ended; None if there is none."""
        at = self.attrs.paused_at
        return None if at is None or self.state not in ("WAITING", "PRUNED") else at / 1000

    @property
    def shown_state(self) -> str:
        """Optuna's name of its state, and PAUSED for a trial that waits at a rung."""
        return "PAUSED" if self.state == "WAITING" and self.paused_kimg is not None else self.state

    @property
    def drawn(self) -> bool:
        """Whether the sampler drew its configuration: it is neither a preset nor a published recipe."""
        return not self.attrs.preset and not self.attrs.recipe

    def updates(self, kimg: float) -> int:
        """Generator updates after ``kimg`` thousand images."""
        hparams = self.attrs.hparams
        return generator_updates(int(hparams["batch_size"]) * int(hparams.get("n_dis", 1)), kimg)

    @property
    def published(self) -> bool:
        """Whether its settings were published: those of a recipe, or of the DCGAN paper."""
        return bool(self.attrs.recipe) or self.attrs.preset == "paper"

    @property
    def root(self) -> int:
        """Number of the first of its attempts."""
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
    def data_option(self) -> str:
        """What a command on this study needs to find its images: nothing where they are shipped, fetched or made."""
        return " --data PATH" if self.attrs.spec["data"]["source"] in ("folder", "celeba") else ""

    @property
    def complete(self) -> list[TrialRecord]:
        """Trials with a final score, best first; ties go to the earlier one."""
        done = [trial for trial in self.trials if trial.state == "COMPLETE" and trial.value is not None]
        return sorted(done, key=lambda trial: (trial.value, trial.number))

    @property
    def newest(self) -> list[TrialRecord]:
        """Every trial once, as its last started attempt."""
        continued = {trial.attrs.retry_of for trial in self.trials if trial.shown_state != "WAITING"}
        return [trial for trial in self.trials if trial.number not in continued]

    def seconds(self, trial: TrialRecord) -> float:
        """Seconds of a trial, of those that it continues, and of those that continue it."""
        return sum(other.seconds for other in self.trials if other.root == trial.root)

    @property
    def best(self) -> TrialRecord | None:
        return self.complete[0] if self.complete else None
