"""Studies side by side: what each found, at what cost, and what differs between them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.findings.confirmation import confirmation
from harness.findings.headline import headline
from harness.findings.ranking import leading, rank
from harness.report import plots
from harness.report.page import write_page
from harness.spec.resolved import changes
from harness.store.records import StudyRecord
from harness.text import duration, number

_SHOWN_DIFFERENCES = 40
_Entry = Mapping[str, Any]


@plots.own_style()
def build_comparison(pairs: Sequence[tuple[StudyRecord, StudyRecord | None]], out: Path) -> Path:
    """Write ``report.md`` and its figure into ``out``, and return its path: the same records give the same bytes.

    ``pairs`` has each study with its confirmation, if there is one; two studies at least.
    """
    first, *others = [record for record, _ in pairs]
    entries = [_entry(record, plan) for record, plan in pairs]
    # Studies whose scores compare; those without a score have none to compare.
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(entry["protocol"] or f"no score: {entry['name']}", []).append(entry["name"])
    shared = [entry for entry in entries if entry["name"] in max(groups.values(), key=len)]
    curves = [curve for entry in shared if len(curve := _spent(entry["record"], entry["protocol"]))]
    context = {
        "entries": entries,
        "groups": list(groups.values()),
        "leader": _leader(shared),
        "samplings": _samplings(entries),
        "reasons": [reason for other in others for reason in _reasons(first, other)] if len(groups) > 1 else [],
        "differences": [_differences(first, record) for record in others],
    }
    figures = {"spent": plots.spent(pd.concat(curves), shared[0]["record"].attrs.final_metric)} if curves else {}
    return write_page(out, "compare.md.j2", context, figures=figures, files={})


def _entry(record: StudyRecord, plan: StudyRecord | None) -> dict[str, Any]:
    board, confirmed = rank(record), confirmation(record, plan) if plan else None
    return {
        "name": record.name,
        "record": record,
        "protocol": board.protocol_hash,
        "best": next(iter(leading(record)), None),
        "finished": sum(trial.state in ("COMPLETE", "PRUNED") for trial in record.trials),
        "time": duration(sum(trial.seconds for trial in record.trials)),
        "confirmed": confirmed,
        "verdict": headline(record, plan).kind,
        "n_samplings": record.attrs.spec["scoring"].get("sampling_seeds") or 1,
    }


def _leader(entries: Sequence[_Entry]) -> dict[str, Any] | None:
    """The best of the studies that compare, and the next; by confirmed means where all have one of one protocol.

    ``overlap``: whether the confirmed intervals of the two do; None where one has no interval.
    """
    scored = [entry for entry in entries if entry["best"]]
    if not scored:
        return None
    unconfirmed = [entry["name"] for entry in scored if entry["confirmed"] is None]
    confirmed = not unconfirmed and len({entry["confirmed"].protocol_hash for entry in scored}) == 1

    def value(entry: _Entry) -> float:
        return float(entry["confirmed"].best.estimate.mean if confirmed else entry["best"].value)

    first, second, *_ = [*sorted(scored, key=lambda entry: (value(entry), entry["name"])), None]
    overlap = None
    if confirmed and second:
        upper, lower = first["confirmed"].best.estimate.high, second["confirmed"].best.estimate.low
        overlap = None if upper is None or lower is None else lower <= upper
    return {
        "confirmed": confirmed,
        "unconfirmed": unconfirmed,
        "first": first,
        "second": second,
        "gap": value(second) - value(first) if second else None,
        "overlap": overlap,
    }


def _samplings(entries: Sequence[_Entry]) -> list[str]:
    """How many samplings scores are means of, where that differs: the protocol's hash does not depend on it."""
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
            rows.append((record.name, hours, best))
    return pd.DataFrame(rows, columns=["study", "hours", "best"])


def _reasons(first: StudyRecord, other: StudyRecord) -> list[str]:
    """Why scores of a study do not compare with the first one's, in words."""
    reasons = [
        f"{change.key} is {number(change.old)} in {first.name}, {number(change.new)} in {other.name}"
        for change in changes(first.attrs.spec["scoring"]["final"], other.attrs.spec["scoring"]["final"])
    ]
    old, new = (record.attrs.dataset["fingerprint"][:12] for record in (first, other))
    if old != new:
        reasons.append(f"the images are others ({old} and {new})")
    if first.attrs.environment.get("versions", "") != other.attrs.environment.get("versions", ""):
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
