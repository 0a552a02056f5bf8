"""The leaderboard: finished trials of one scoring protocol, best first."""

from __future__ import annotations

from dataclasses import dataclass

from harness.spec.objectives import Objective, as_losses, front
from harness.store.records import StudyRecord, TrialRecord


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """``trials`` share ``protocol_hash``; ``left_out`` were scored under another protocol and are not ranked."""

    trials: tuple[TrialRecord, ...]
    protocol_hash: str
    left_out: tuple[int, ...]


def rank(record: StudyRecord, *, top: int | None = None) -> Leaderboard:
    """The best ``top`` trials (None: all) under the protocol of most finished ones (of two as common the newest)."""
    hashes = [trial.attrs.protocol_hash for trial in record.complete]
    by_age = [t.attrs.protocol_hash for t in record.trials if t.state == "COMPLETE"]
    chosen = max(set(hashes), key=lambda h: (hashes.count(h), by_age[::-1].index(h) * -1)) if hashes else ""
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
