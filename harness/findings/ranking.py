"""A study's record as a leaderboard and as data frames."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from harness.findings.health import flaw
from harness.gan.hparams import stored_value
from harness.spec.objectives import Objective, as_losses, front
from harness.store.records import StudyRecord, TrialRecord

FEWEST_PAIRS = 5


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """``trials`` share ``protocol_hash``, best first; ``left_out`` were scored under another protocol."""

    trials: tuple[TrialRecord, ...]
    protocol_hash: str
    left_out: tuple[int, ...]


def rank(record: StudyRecord) -> Leaderboard:
    """The trials under the protocol of most finished ones (of two as common the newest), best first.

    A trial without a protocol was scored by another program, in a study of ours.
    """
    hashes = [trial.attrs.protocol_hash for trial in record.complete]
    by_age = [t.attrs.protocol_hash for t in record.trials if t.state == "COMPLETE"]
    chosen = max(set(hashes), key=lambda h: (h != "", hashes.count(h), by_age[::-1].index(h) * -1)) if hashes else ""
    ranked = tuple(trial for trial in record.complete if trial.attrs.protocol_hash == chosen)
    left_out = tuple(t.number for t in record.complete if t.attrs.protocol_hash != chosen)
    return Leaderboard(ranked, chosen, left_out)


def leading(record: StudyRecord) -> list[TrialRecord]:
    """The leaderboard's trials, the best first; those with a flaw last."""
    return sorted(rank(record).trials, key=lambda trial: bool(flaw(trial)))


def objectives(record: StudyRecord) -> tuple[Objective, ...]:
    """What the study searches for; the score alone, unless its file says more."""
    return tuple(record.attrs.spec.get("objectives") or ("score",))


def pareto_front(record: StudyRecord) -> list[TrialRecord]:
    """The trials of the leaderboard's protocol that no other dominates, best score first."""
    names = objectives(record)
    ranked = [t for t in rank(record).trials if len(t.values) == len(names)]
    return [ranked[place] for place in front([as_losses(trial.values, names) for trial in ranked])]


def trials_dataframe(record: StudyRecord) -> pd.DataFrame:
    """One row for each started trial, for a person, as :meth:`harness.Study.trials_dataframe` says."""
    searched, kimg = list(record.attrs.spec["space"]), record.attrs.spec["budget"]["kimg"]
    started = [trial for trial in record.trials if trial.shown_state != "WAITING"]
    rows = [
        {
            "number": trial.number,
            "state": trial.shown_state,
            "preset": trial.attrs.preset,
            **{name: trial.params.get(name, stored_value(trial.attrs.hparams, name)) for name in searched},
            **{f"rung_{kimg:g}kimg": score for kimg, score in rung_scores(trial)},
            "value": trial.value if trial.state == "COMPLETE" else None,
            **trial.attrs.scores,
            "updates": trial.updates(kimg) if trial.state == "COMPLETE" else None,
            "seconds": record.seconds(trial),
            "protocol": trial.attrs.protocol_hash,
            "reason": trial.reason,
        }
        for trial in started
    ]
    steps = [f"rung_{kimg:g}kimg" for kimg in sorted({kimg for trial in started for kimg, _ in rung_scores(trial)})]
    scores = sorted({name for trial in started for name in trial.attrs.scores})
    ends = ["value", *scores, "updates", "seconds", "protocol", "reason"]
    columns = ["number", "state", "preset", *searched, *steps, *ends]
    return pd.DataFrame(rows, columns=columns)


def rungs_frame(record: StudyRecord) -> pd.DataFrame:
    """One row a rung score: number, kimg, score, state; of several attempts at a trial the last one's."""
    rows = [(trial.number, *scored, trial.shown_state) for trial in record.newest for scored in rung_scores(trial)]
    return pd.DataFrame(rows, columns=["number", "kimg", "score", "state"])


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's, of the rung scores at ``kimg`` and the final scores of ``n`` trials."""

    kimg: float
    rho: float
    n: int


def rank_correlations(record: StudyRecord) -> list[RankCorrelation]:
    """How well each rung's scores rank the trials that were trained to the end, from ``FEWEST_PAIRS`` pairs on."""
    from scipy.stats import spearmanr  # a second, which starting a sweep need not wait for

    ranked, found = rank(record).trials, []
    for kimg in sorted({kimg for trial in ranked for kimg, _ in rung_scores(trial)}):
        pairs = [(dict(rung_scores(trial)).get(kimg), trial.value) for trial in ranked]
        known = [pair for pair in pairs if pair[0] is not None]
        if len(known) >= FEWEST_PAIRS and all(len(set(side)) > 1 for side in zip(*known, strict=True)):
            rungs, finals = zip(*known, strict=True)
            found.append(RankCorrelation(kimg, float(spearmanr(rungs, finals).statistic), len(known)))
    return found


def rung_scores(trial: TrialRecord) -> list[tuple[float, float]]:
    """(kimg, score) of each rung in turn, without the value that stands for divergence."""
    scores = [(step / 1000, score) for step, score in sorted(trial.intermediate.items())]
    return scores[:-1] if trial.attrs.diverged else scores
