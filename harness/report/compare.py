"""Studies side by side: what each found, for how much, and what differs between them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.findings.confirmation import Confirmation, confirmation
from harness.findings.ranking import Leaderboard, rank
from harness.report import plots
from harness.report.page import Page
from harness.spec.resolved import changes
from harness.store.records import StudyRecord
from harness.text import duration, number

_SHOWN_DIFFERENCES = 40


def build_comparison(pairs: Sequence[tuple[StudyRecord, StudyRecord | None]], out: Path) -> Path:
    """Write ``report.md`` and its figure into ``out``: the same records give the same bytes.

    Args:
        pairs: each study with its confirmation, if there is one; two studies at least.
        out: ``reports/compare-A-B``.

    Returns:
        The path of ``report.md``.
    """
    first, *others = [record for record, _ in pairs]
    entries = [_entry(record, confirmation(record, plan) if plan else None) for record, plan in pairs]
    groups = _by_protocol(entries)
    shared = max(groups, key=len)
    curves = [_spent(record, entry["protocol"]) for (record, _), entry in zip(pairs, entries, strict=True)]
    shown = [curve for curve in curves if len(curve) and curve["study"].iloc[0] in shared]
    metric = next(entry["metric"] for entry in entries if entry["name"] in shared)
    page = Page(
        template="compare.md.j2",
        context={
            "entries": entries,
            "groups": groups,
            "leader": _leader([entry for entry in entries if entry["name"] in shared]),
            "samplings": _samplings(entries),
            "reasons": _reasons(first, others) if len(groups) > 1 else [],
            "differences": [_differences(first, record) for record in others],
        },
        figures={"spent": plots.spent(pd.concat(shown), metric)} if shown else {},
        owned=("spent.png",),
    )
    return page.write(out)


def _entry(record: StudyRecord, confirmed: Confirmation | None) -> dict[str, Any]:
    board: Leaderboard = rank(record, top=1)
    best = board.trials[0] if board.trials else None
    return {
        "name": record.name,
        "metric": record.attrs.final_metric,
        "protocol": board.protocol_hash,
        "best": best,
        "finished": sum(trial.state in ("COMPLETE", "PRUNED") for trial in record.trials),
        "target": record.attrs.target,
        "time": duration(sum(trial.seconds for trial in record.trials)),
        "confirmed": confirmed,
        "n_samplings": record.attrs.spec["scoring"].get("sampling_seeds") or 1,
        "environment": record.attrs.environment,
    }


def _by_protocol(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The studies whose scores compare, in groups; those without a score have none to compare."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(entry["protocol"] or f"no score: {entry['name']}", []).append(entry["name"])
    return list(groups.values())


def _leader(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The best of the studies that compare, and the next; by confirmed means where all have one of one protocol.

    ``overlap``: whether the confirmed intervals of the two do; None where one has no interval.
    """
    scored = [entry for entry in entries if entry["best"]]
    if not scored:
        return None
    unconfirmed = [entry["name"] for entry in scored if entry["confirmed"] is None]
    protocols = {entry["confirmed"].protocol_hash for entry in scored if entry["confirmed"]}
    confirmed = not unconfirmed and len(protocols) == 1

    def value(entry: Mapping[str, Any]) -> float:
        return float(entry["confirmed"].best.estimate.mean if confirmed else entry["best"].value)

    first, *rest = sorted(scored, key=lambda entry: (value(entry), entry["name"]))
    second = rest[0] if rest else None
    return {
        "confirmed": confirmed,
        "unconfirmed": unconfirmed,
        "first": first,
        "second": second,
        "gap": value(second) - value(first) if second else None,
        "overlap": _overlap(first["confirmed"], second["confirmed"]) if confirmed and second else None,
    }


def _overlap(first: Confirmation, second: Confirmation) -> bool | None:
    upper, lower = first.best.estimate.high, second.best.estimate.low
    return None if upper is None or lower is None else lower <= upper


def _samplings(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many samplings scores are means of, where that differs: the protocol's hash does not tell."""
    searched = {entry["name"]: entry["n_samplings"] for entry in entries if entry["best"]}
    confirmed = {entry["name"]: entry["confirmed"].n_samplings for entry in entries if entry["confirmed"]}
    return [
        f"{what}: " + ", ".join(f"{n} in {name}" for name, n in counts.items())
        for what, counts in (("scores in the search", searched), ("confirmed scores", confirmed))
        if len(set(counts.values())) > 1
    ]


def _spent(record: StudyRecord, protocol: str) -> pd.DataFrame:
    """The best final score so far by the workers' time spent, in the order in which trials ended."""
    hours, best, rows = 0.0, float("inf"), []
    ended = [trial for trial in record.trials if trial.ended is not None]
    for trial in sorted(ended, key=lambda trial: (trial.ended, trial.number)):
        hours += trial.seconds / 3600
        if trial.state == "COMPLETE" and trial.value is not None and trial.attrs.protocol_hash == protocol:
            best = min(best, trial.value)
        if best < float("inf"):
            rows.append({"study": record.name, "hours": hours, "best": best})
    return pd.DataFrame(rows, columns=["study", "hours", "best"])


def _reasons(first: StudyRecord, others: Sequence[StudyRecord]) -> list[str]:
    """Why scores of some studies do not compare with the first one's, in words."""
    reasons: list[str] = []
    for other in others:
        reasons += [
            f"{change.key} is {number(change.old)} in {first.name}, {number(change.new)} in {other.name}"
            for change in changes(first.attrs.spec["scoring"]["final"], other.attrs.spec["scoring"]["final"])
        ]
        prints = [record.attrs.dataset["fingerprint"][:12] for record in (first, other)]
        if prints[0] != prints[1]:
            reasons.append(f"the images are others ({prints[0]} and {prints[1]})")
        versions = [record.attrs.environment.get("versions", "") for record in (first, other)]
        if versions[0] != versions[1]:
            reasons.append("the libraries' versions differ")
    return reasons


def _differences(first: StudyRecord, other: StudyRecord) -> dict[str, Any]:
    rows = [
        {"key": change.key, "old": _short(change.old), "new": _short(change.new)}
        for change in changes(first.attrs.spec, other.attrs.spec)
        if change.key not in ("name", "presets")
    ]
    more = max(0, len(rows) - _SHOWN_DIFFERENCES)
    return {"name": other.name, "first": first.name, "rows": rows[:_SHOWN_DIFFERENCES], "more": more}


def _short(value: Any) -> str:
    text = number(value) if not isinstance(value, list | dict) else json.dumps(value)
    return (text if len(text) <= 60 else f"{text[:57]}…").replace("|", "\\|")
