"""A study's record as a leaderboard and as data frames."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from harness.gan.hparams import stored_value
from harness.spec.objectives import Objective, as_losses, front
from harness.store.records import StudyRecord, TrialRecord

_COLUMNS = ("number", "state", "value", "kimg", "seconds", "score_s", "diverged", "preset", "reason", "paused_kimg")


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """``trials`` share ``protocol_hash``, best first; ``left_out`` were scored under another protocol."""

    trials: tuple[TrialRecord, ...]
    protocol_hash: str
    left_out: tuple[int, ...]


def rank(record: StudyRecord, *, top: int | None = None) -> Leaderboard:
    """The best ``top`` trials (None: all) under the protocol of most finished ones (of two as common the newest).

    A trial without a protocol was scored by another program, in a study of ours.
    """
    hashes = [trial.attrs.protocol_hash for trial in record.complete]
    by_age = [t.attrs.protocol_hash for t in record.trials if t.state == "COMPLETE"]
    chosen = max(set(hashes), key=lambda h: (h != "", hashes.count(h), by_age[::-1].index(h) * -1)) if hashes else ""
    ranked = [trial for trial in record.complete if trial.attrs.protocol_hash == chosen]
    left_out = tuple(t.number for t in record.complete if t.attrs.protocol_hash != chosen)
    return Leaderboard(tuple(ranked[:top]), chosen, left_out)


def objectives(record: StudyRecord) -> tuple[Objective, ...]:
    """What the study searches for; the score alone, unless its file says more."""
    return tuple(record.attrs.spec.get("objectives") or ("score",))


def pareto_front(record: StudyRecord) -> list[TrialRecord]:
    """The trials of the leaderboard's protocol that no other dominates, best score first."""
    names = objectives(record)
    ranked = [t for t in rank(record).trials if len(t.values) == len(names)]
    return [ranked[place] for place in front([as_losses(trial.values, names) for trial in ranked])]


def trials_frame(record: StudyRecord) -> pd.DataFrame:
    """One row a trial that was started, with its parameters by name; values only of the leaderboard's protocol."""
    comparable = {trial.number for trial in rank(record).trials}
    rows = [
        {
            "number": trial.number,
            "state": trial.shown_state,
            "value": trial.value if trial.number in comparable else None,
            "kimg": max((kimg for kimg, _ in rung_scores(trial)), default=0.0),
            "seconds": trial.seconds,
            "score_s": trial.attrs.score_s or 0.0,
            "diverged": trial.attrs.diverged,
            "preset": trial.attrs.preset,
            "reason": trial.reason,
            "paused_kimg": trial.paused_kimg,
            **trial.params,
        }
        for trial in record.trials
        if trial.shown_state != "WAITING"
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=_COLUMNS)


def trials_dataframe(record: StudyRecord) -> pd.DataFrame:
    """One row for each started trial, for a person, as :meth:`harness.Study.trials_dataframe` says."""
    searched = list(record.attrs.spec["space"])
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
            "seconds": record.seconds(trial),
            "protocol": trial.attrs.protocol_hash,
            "reason": trial.reason,
        }
        for trial in started
    ]
    steps = [f"rung_{kimg:g}kimg" for kimg in sorted(set(rungs_frame(record)["kimg"]))]
    scores = sorted({name for trial in started for name in trial.attrs.scores})
    columns = ["number", "state", "preset", *searched, *steps, "value", *scores, "seconds", "protocol", "reason"]
    return pd.DataFrame(rows, columns=columns)


def rungs_frame(record: StudyRecord) -> pd.DataFrame:
    """One row a rung score: number, kimg, score, state."""
    rows = [(trial.number, *scored, trial.shown_state) for trial in record.trials for scored in rung_scores(trial)]
    return pd.DataFrame(rows, columns=["number", "kimg", "score", "state"])


def rung_scores(trial: TrialRecord) -> list[tuple[float, float]]:
    """(kimg, score) of each rung in turn, without the value that stands for divergence."""
    scores = [(step / 1000, score) for step, score in sorted(trial.intermediate.items())]
    return scores[:-1] if trial.attrs.diverged else scores
