"""A study's record as data frames."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from harness.findings.ranking import rank
from harness.store.records import StudyRecord, TrialRecord

_COLUMNS = ("number", "state", "value", "kimg", "seconds", "score_s", "diverged", "preset", "reason")


def trials_frame(record: StudyRecord) -> pd.DataFrame:
    """One row a trial that was started: number, state, value, kimg, seconds, reason, and every parameter by name.

    Values are those of the leaderboard's protocol; others cannot be compared with them.
    """
    comparable = {trial.number for trial in rank(record).trials}
    rows = [
        {
            "number": trial.number,
            "state": trial.state,
            "value": trial.value if trial.number in comparable else None,
            "kimg": max((kimg for kimg, _ in rung_scores(trial)), default=0.0),
            "seconds": trial.seconds,
            "score_s": trial.attrs.score_s or 0.0,
            "diverged": trial.attrs.diverged,
            "preset": trial.attrs.preset,
            "reason": trial.reason,
            **trial.params,
        }
        for trial in record.trials
        if trial.state != "WAITING"
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=_COLUMNS)


def trials_dataframe(record: StudyRecord) -> pd.DataFrame:
    """One row for each started trial, for a person: parameters, rung scores and final scores by name.

    Columns: number, state, preset, each searched parameter, ``rung_3kimg`` for the score at 3 kimg, value, each final
    score, seconds (of training and scoring, all attempts), protocol (its hash), reason. Of a recipe's trial, which has
    no searched parameters, they are those that it trained with.
    """
    searched = list(record.attrs.spec["space"])
    rungs = rungs_frame(record)
    started = [trial for trial in record.trials if trial.state != "WAITING"]
    rows = []
    for trial in started:
        trained = trial.attrs.hparams
        own = rungs[rungs["number"] == trial.number]
        rows.append(
            {
                "number": trial.number,
                "state": trial.state,
                "preset": trial.attrs.preset,
                **{name: trial.params.get(name, trained.get(name)) for name in searched},
                **{f"rung_{kimg:g}kimg": score for kimg, score in zip(own["kimg"], own["score"], strict=True)},
                "value": trial.value if trial.state == "COMPLETE" else None,
                **trial.attrs.scores,
                "seconds": record.seconds(trial),
                "protocol": trial.attrs.protocol_hash,
                "reason": trial.reason,
            }
        )
    steps = [f"rung_{kimg:g}kimg" for kimg in sorted(set(rungs["kimg"]))]
    scores = sorted({name for trial in started for name in trial.attrs.scores})
    columns = ["number", "state", "preset", *searched, *steps, "value", *scores, "seconds", "protocol", "reason"]
    return pd.DataFrame(rows, columns=columns)


def rungs_frame(record: StudyRecord) -> pd.DataFrame:
    """One row a rung score: number, kimg, score, state."""
    rows = [
        {"number": trial.number, "kimg": kimg, "score": score, "state": trial.state}
        for trial in record.trials
        for kimg, score in rung_scores(trial)
    ]
    return pd.DataFrame(rows, columns=["number", "kimg", "score", "state"])


def rung_scores(trial: TrialRecord) -> list[tuple[float, float]]:
    """(kimg, score) of each rung in turn, without the value that stands for divergence."""
    scores = [(step / 1000, score) for step, score in sorted(trial.intermediate.items())]
    return scores[:-1] if trial.attrs.diverged else scores


def curve_frame(path: Path) -> pd.DataFrame:
    """The training curves of one trial by kimg; empty where the file is gone."""
    try:
        return pd.DataFrame(json.loads(path.read_text()))
    except (OSError, ValueError):
        return pd.DataFrame()
