"""A study's record as data frames."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from harness.findings.ranking import rank
from harness.store.records import StudyRecord


def trials_frame(record: StudyRecord) -> pd.DataFrame:
    """One row a trial that was started: number, state, value, kimg, seconds, reason, and every parameter by name.

    Values are those of the leaderboard's protocol; others cannot be compared with them.
    """
    comparable = {trial.number for trial in rank(record, top=len(record.trials)).trials}
    rows = [
        {
            "number": trial.number,
            "state": trial.state,
            "value": trial.value if trial.number in comparable else None,
            "kimg": _last_kimg(trial.intermediate, trial.attrs.diverged),
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
    return pd.DataFrame(rows)


def rungs_frame(record: StudyRecord) -> pd.DataFrame:
    """One row a rung score: number, kimg, score, state. The values that stand for divergence are left out."""
    rows = []
    for trial in record.trials:
        steps = list(trial.intermediate.items())
        if trial.attrs.diverged and steps:
            steps = steps[:-1]
        rows += [{"number": trial.number, "kimg": s / 1000, "score": v, "state": trial.state} for s, v in steps]
    return pd.DataFrame(rows, columns=["number", "kimg", "score", "state"])


def curve_frame(path: Path) -> pd.DataFrame:
    """The training curves of one trial by kimg; empty where the file is gone."""
    try:
        return pd.DataFrame(json.loads(path.read_text()))
    except (OSError, ValueError):
        return pd.DataFrame()


def _last_kimg(intermediate: object, diverged: bool) -> float:
    steps = sorted(intermediate) if isinstance(intermediate, dict) else []
    if diverged:
        steps = steps[:-1]
    return steps[-1] / 1000 if steps else 0.0
