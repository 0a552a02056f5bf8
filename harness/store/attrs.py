"""Attributes of trials and of studies in the database: named, written and parsed here, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self


class _Attrs:
    """Fields that are written only where they differ from their default, which an absent one is read as."""

    __slots__ = ()

    @classmethod
    def parse(cls, stored: Mapping[str, Any]) -> Self:
        """The attributes as the database has them; those that this version does not know are left out."""
        parsed = {}
        for name, value in stored.items():
            if (own := _FIELDS[cls].get(name)) is not None:
                parsed[own] = _PARSERS[own](value) if own in _PARSERS else value
        return cls(**parsed)

    def stored(self) -> dict[str, Any]:
        """What to write into the database, by the names that it knows."""
        written = {}
        for name, own in _FIELDS[type(self)].items():
            value = getattr(self, own)
            if value != _DEFAULTS[type(self)][own]:
                written[name] = _WRITERS[own](value) if own in _WRITERS else value
        return written


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialAttrs(_Attrs):
    """What the database knows of a trial beside Optuna's own fields.

    Attributes:
        preset: name of the preset that it trains.
        recipe, variant, own_images: of the published system that it trains, and how that prepares its images.
        overrides: hyperparameters over the study's fixed ones: all of a recipe's or an arm's.
        arm, training_seed: which configuration of a fixed study it trains, with which seed.
        hparams, seed, folder: what it trains, and where, relative to the home folder.
        position: its place in the search, which a retry shares with the trial that it continues.
        retry_of, root: the trial that it continues, and the first of those.
        crashes: how often in a row workers died without getting further.
        oom: whether it ran out of memory once, with other workers running.
        kept_at: the step at which the pruner last let it continue.
        worker: the process that runs it.
        saved_kimg, saved_s: its newest checkpoint, and after how many seconds; resumed_kimg: where it began.
        watched: signs of the samples' diversity, by step and name.
        rung_seconds: seconds trained, by step.
        elapsed_s, score_s: in all, and of final scoring.
        reason: why it ended as it did.
        diverged, diverged_step: whether a gradient was not finite, or its images could not be scored.
        scores, unavailable: of the final protocol, and why others are missing.
        samplings: the final score with each sampling seed.
        protocol_hash: of the final protocol.
    """

    preset: str = ""
    recipe: str = ""
    variant: str = ""
    own_images: str = ""
    overrides: Mapping[str, Any] | None = None
    arm: str = ""
    training_seed: int | None = None
    hparams: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    folder: str = ""
    position: int | None = None
    retry_of: int | None = None
    root: int | None = None
    crashes: int = 0
    oom: bool = False
    kept_at: int | None = None
    worker: Mapping[str, Any] | None = None
    saved_kimg: float = 0.0
    saved_s: float = 0.0
    resumed_kimg: float = 0.0
    watched: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    rung_seconds: Mapping[int, float] = field(default_factory=dict)
    elapsed_s: float | None = None
    score_s: float | None = None
    reason: str = ""
    diverged: bool = False
    diverged_step: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    samplings: Sequence[float] = ()
    protocol_hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyAttrs(_Attrs):
    """What the database knows of a study beside Optuna's own fields.

    Attributes:
        spec: the study file as it was when the study was started, parsed; spec_hash: of it.
        description: the file's.
        uid: of this study, which another one of the same name does not have.
        dataset: name, source, number and fingerprint of the images.
        target: trials wanted.
        environment: versions and machine of the newest start.
        final_metric, rung_metric: names of the scores.
        protocols: by kind of score, all that its meaning depends on.
        mlflow_experiment, mlflow_parent: where its runs are.
    """

    spec: Mapping[str, Any] = field(default_factory=dict)
    spec_hash: str = ""
    description: str = ""
    uid: str = ""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    target: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    final_metric: str = ""
    rung_metric: str = ""
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mlflow_experiment: str = ""
    mlflow_parent: str = ""


def position_of(stored: Mapping[str, Any]) -> int | None:
    """A trial's position alone, of one among thousands: nothing else is parsed."""
    position: int | None = stored.get(_POSITION)
    return position


def retry_of(stored: Mapping[str, Any]) -> int | None:
    """The number of the trial that it continues, alone."""
    number: int | None = stored.get(_RETRY_OF)
    return number


_POSITION, _RETRY_OF = "place", "retry_of"
_STORED = {"position": _POSITION}
_FIELDS: dict[type, dict[str, str]] = {
    kind: {_STORED.get(own.name, own.name): own.name for own in fields(kind)} for kind in (TrialAttrs, StudyAttrs)
}
_DEFAULTS: dict[type, dict[str, Any]] = {
    kind: {own: getattr(kind(), own) for own in _FIELDS[kind].values()} for kind in (TrialAttrs, StudyAttrs)
}


def _by_step(stored: Mapping[str, Any]) -> dict[int, Any]:
    return {int(step): value for step, value in stored.items()}


def _by_text(parsed: Mapping[int, Any]) -> dict[str, Any]:
    return {str(step): value for step, value in sorted(parsed.items())}


_PARSERS: dict[str, Any] = {"watched": _by_step, "rung_seconds": _by_step, "spec": json.loads}
_WRITERS: dict[str, Any] = {"watched": _by_text, "rung_seconds": _by_text, "spec": json.dumps}
