"""The health of finished trainings: diversity, the discriminator's loss floor, and what an audit found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from harness.store.records import TrialRecord
from harness.text import number
from harness.training.run_folder import RunFolder, RunRecord

# Samples that are less than half as far apart as real images have lost modes, or shapes. Those more than 1.4 times as
# far apart vary twice as much by pixels (the square): noise, or black and white shapes.
COLLAPSED, SATURATED = 0.5, 1.4
# The discriminator has won while its loss is within this many nats of the least that its labels allow; it has won a
# training if it did so for more than this share of the second half.
WON, WON_SHARE = 0.05, 0.5
# How samples can be so unlike images that their score says nothing; empty if they are not.
Flaw = Literal["collapsed", "saturated", ""]
# A gap between running and batch statistics that is more than this share of the score is reported.
GAP = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What is known of a trial's samples; None where it was not measured."""

    name: str
    # Of samples as a share of real images': the distance by pixels at a fixed z, the variance of features.
    distance: float | None
    variance: float | None = None
    # Share of the training's second half in which the discriminator's loss was at its floor.
    won: float | None = None
    # With BatchNorm's running statistics, and with those of each batch.
    score: float | None = None
    batch_score: float | None = None
    # Probability that a sample is nearer to a training image than another real image is.
    nearer: float | None = None
    memorises: bool = False

    @property
    def is_known(self) -> bool:
        return self.distance is not None or self.score is not None

    @property
    def findings(self) -> list[str]:
        """What is wrong, in words; empty where nothing was found."""
        texts = []
        flaw = flaw_of(self.distance)
        if flaw:
            texts.append(f"**{flaw}**: samples are {number(self.distance)} times as far apart as real images")
        if self.won is not None and self.won > WON_SHARE:
            texts.append(f"the discriminator had won for {100 * self.won:.0f} % of the second half")
        if self.score and self.batch_score is not None and abs(self.batch_score - self.score) > GAP * self.score:
            scores = f"{number(self.score)} with running ones, {number(self.batch_score)} with those of each batch"
            texts.append(f"the score depends on BatchNorm's statistics: {scores}")
        if self.memorises and self.nearer is not None:
            near = "samples are nearer to training images than other real images are with a probability of "
            near += f"{100 * self.nearer:.0f} % (50 % is chance, 100 % all copies)"
            # A nearly blank image is near to many others.
            unlike = "alike" if flaw == "collapsed" else "unlike images"
            blank = f"{near}; {unlike} as they are, they need be no copies"
            texts.append(blank if flaw else f"**memorises**: {near}")
        return texts


def sample_distance(trial: TrialRecord) -> float | None:
    """How far apart its last samples are, as a share of real images' distance; None where it was not measured."""
    watched = trial.attrs.watched
    return watched[max(watched)].get("sample_distance") if watched else None


def flaw_of(distance: float | None) -> Flaw:
    """What samples suffer from that are this far apart, as a share of real images' distance; empty if nothing."""
    if distance is None or COLLAPSED <= distance <= SATURATED:
        return ""
    return "collapsed" if distance < COLLAPSED else "saturated"


def flaw(trial: TrialRecord) -> Flaw:
    """What its last samples suffer from, as far as it was measured."""
    return flaw_of(sample_distance(trial))


def health(name: str, trial: TrialRecord, root: Path) -> Health:
    """What the database and a trial's folder say of its samples."""
    watched, audit = trial.attrs.watched, audited(trial, root) or {}
    last = watched[max(watched)] if watched else {}
    copying, distance = audit.get("copying", {}), sample_distance(trial)
    return Health(
        name=name,
        distance=audit.get("sample_distance") if distance is None else distance,
        variance=last.get("feature_variance"),
        won=_won(RunFolder(root / trial.attrs.folder), trial.attrs.hparams),
        score=audit.get("score"),
        batch_score=audit.get("batch_score"),
        nearer=copying.get("probability"),
        memorises=bool(copying.get("memorises")),
    )


def training_health(run: RunFolder, summary: Mapping[str, Any]) -> Health:
    """What a single training's folder says of its samples; ``summary`` is its ``training.json``."""
    watched = RunRecord.read(run.record(summary["kimg"])).marks
    distances = [watched[step]["sample_distance"] for step in sorted(watched) if "sample_distance" in watched[step]]
    return Health(
        name=run.path.name,
        distance=distances[-1] if distances else None,
        won=_won(run, summary["hparams"]),
    )


def audited(trial: TrialRecord, root: Path) -> dict[str, Any] | None:
    """What ``harness audit`` found of a trial, under the protocol that it was scored with; None if it did not."""
    found = RunFolder(root / trial.attrs.folder).read_audit()
    return found if found and found.get("protocol_hash") == trial.attrs.protocol_hash else None


def loss_floor(hparams: Mapping[str, Any]) -> float:
    """The least loss (nats) of a discriminator that is right about everything: the entropy of its smoothed labels."""
    smoothing, factor = float(hparams["label_smoothing"]), float(hparams["d_loss_factor"])
    parts = [share for share in (smoothing, 1 - smoothing) if share > 0]
    return factor * -sum(share * math.log(share) for share in parts)


def _won(run: RunFolder, hparams: Mapping[str, Any]) -> float | None:
    curve = pd.DataFrame(run.read_curve())
    if not len(curve):
        return None
    half = curve[curve["kimg"] > curve["kimg"].max() / 2]["loss_d"]
    floor = loss_floor(hparams) + WON * float(hparams["d_loss_factor"])
    return float((half < floor).mean())
