"""Sentences about any training, not about one system against another: tested on all trainings of claims together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.stats import spearmanr

from harness.findings.statistics import LEVEL
from harness.findings.verdicts import ArmResult, Verdict

# A rank correlation of this much tells quality.
TELLING = 0.5
# Trainings of one arm are alike: intervals are of resampled arms, and fewer say nothing.
FEWEST_ARMS = 5
_RESAMPLED = 1000
Rows = Sequence[tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """What was said of any training. ``measured`` gives the numbers of one, or None; ``value`` is of those of many."""

    title: str
    quote: str
    source: str
    test: str
    measured: Callable[[ArmResult, int], tuple[float, ...] | None]
    value: Callable[[Rows], float]
    verdict: Callable[[float, float], Verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    sentence: Sentence
    trainings: int
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict


def tested(sentence: Sentence, results: Mapping[str, ArmResult]) -> Tested:
    """A sentence with its value over all trainings and the 95 % interval of resampled arms (Efron's percentiles)."""
    measured = ([sentence.measured(arm, seed) for seed in sorted(arm.trials)] for arm in results.values())
    by_arm = [own for rows in measured if (own := [row for row in rows if row is not None])]
    together = [row for rows in by_arm for row in rows]
    if len(by_arm) < FEWEST_ARMS:
        return Tested(sentence=sentence, trainings=len(together), value=None, low=None, high=None, verdict="undecided")
    rng, values = np.random.default_rng(0), []
    for _ in range(_RESAMPLED):
        drawn = [by_arm[index] for index in rng.integers(len(by_arm), size=len(by_arm))]
        values.append(sentence.value([row for rows in drawn for row in rows]))
    low, high = (float(bound) for bound in np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Tested(
        sentence=sentence, trainings=len(together), value=sentence.value(together), low=low, high=high,
        verdict=sentence.verdict(low, high),
    )  # fmt: skip


def _loss_and_score(arm: ArmResult, seed: int) -> tuple[float, ...] | None:
    curve, trial = arm.curves.get(seed), arm.trials[seed]
    if not curve or trial.state != "COMPLETE" or trial.value is None:
        return None
    return fmean(point["loss_g"] for point in curve if point["kimg"] > curve[-1]["kimg"] / 2), trial.value


def _improved(arm: ArmResult, seed: int) -> tuple[float, ...] | None:
    quick = [score for _, score in sorted(arm.trials[seed].intermediate.items())]
    return (float(quick[-1] < quick[0]),) if len(quick) > 1 else None


def _rank_correlation(rows: Rows) -> float:
    losses, scores = zip(*rows, strict=True)
    return float(spearmanr(losses, scores).statistic) if len(set(losses)) > 1 and len(set(scores)) > 1 else math.nan


def _share(rows: Rows) -> float:
    return fmean(row[0] for row in rows)


def _weak(low: float, high: float) -> Verdict:
    if low > -TELLING and high < TELLING:
        return "supported"
    return "refuted" if low >= TELLING or high <= -TELLING else "undecided"


def _most(low: float, high: float) -> Verdict:
    return "supported" if low > 0.5 else "refuted" if high < 0.5 else "undecided"


SENTENCES = (
    Sentence(
        title="Losses do not tell the quality",
        quote="This is another important visualization as the generator and discriminator losses don't always "
        "accurately convey the message and sometimes a subjective evaluation of the images created by the generator is "
        "a better marker for success than just validation scores and losses.",
        source="README of the Keras system (recipe celeba128); that of svhn32 reads blurry images off a high loss",
        test="rank correlation (Spearman) of the generator's loss, mean of the second half, with the final score; "
        f"supported if its whole interval is between -{TELLING} and {TELLING}",
        measured=_loss_and_score, value=_rank_correlation, verdict=_weak,
    ),
    Sentence(
        title="Longer training gives better images",
        quote="More extended training will yield better results",
        source="README of sssingh/svhn-and-celebrity-image-generation-dcgan (recipes svhn32 and celeba32_deep)",
        test="share of trainings whose quick score is better at two thirds of the length than at one third; supported "
        "if its whole interval is above 1/2",
        measured=_improved, value=_share, verdict=_most,
    ),
)  # fmt: skip
