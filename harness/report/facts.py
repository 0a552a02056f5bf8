"""What a report states, for machines: ``report.json``, and what changed between two of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import NotFoundError, UsageError
from harness.report.confirmed import Confirmation
from harness.report.markdown import number
from harness.report.ranking import rank
from harness.study.drift import changes
from harness.study.records import StudyRecord

FACTS_FILE = "report.json"


def facts(record: StudyRecord, found: Confirmation | None) -> str:
    """The report's statements as JSON: the same record gives the same bytes."""
    board = rank(record, top=len(record.trials))
    stated = {
        "study": record.name,
        "uid": record.attrs.get("uid", ""),
        "metric": record.attrs["final_metric"],
        "protocol_hash": board.protocol_hash,
        "target": record.attrs["target"],
        "finished": sum(trial.state in ("COMPLETE", "PRUNED") for trial in record.trials),
        "ranked": [
            {"trial": trial.number, "value": trial.value, "hparams": trial.attrs["hparams"]} for trial in board.trials
        ],
        "ended": {
            str(t.number): {"state": t.state, "reason": t.reason}
            for t in record.trials
            if t.state not in ("COMPLETE", "WAITING", "RUNNING")
        },
        "confirmed": _confirmed(found) if found else None,
        "spec": json.loads(record.attrs["spec"]),
        "environment": record.attrs.get("environment", {}),
        "fingerprint": record.attrs["dataset"]["fingerprint"],
    }
    return json.dumps(stated, indent=1, sort_keys=True) + "\n"


def _confirmed(found: Confirmation) -> list[dict[str, Any]]:
    return [
        {"name": a.name, "mean": a.estimate.mean, "low": a.estimate.low, "high": a.estimate.high, "n": a.estimate.n}
        for a in found.ranked
    ]


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a report, by its folder or by a file in it.

    Raises:
        NotFoundError: there is none, or it cannot be read.
    """
    folder = path.parent if path.is_file() else path
    try:
        found: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"no {FACTS_FILE} of a study's report in {folder} ({type(error).__name__})",
            "`harness report STUDY` writes one; keep a copy of the folder to compare with later.",
        ) from None


def report_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What changed from one report of a study to another, a line each.

    Raises:
        UsageError: they are of two studies.
    """
    if old["study"] != new["study"]:
        raise UsageError(
            f"these are reports of two studies, {old['study']} and {new['study']}",
            f"Say `harness report {old['study']} {new['study']}` to compare studies.",
        )
    if old["uid"] != new["uid"]:
        yield "the study was started anew in between: its trials are others"
    for change in changes(old["spec"], new["spec"]):
        yield f"setting {change}"
    if old["fingerprint"] != new["fingerprint"]:
        yield f"images: {old['fingerprint'][:12]} became {new['fingerprint'][:12]}"
    for key in ("finished", "target"):
        if old[key] != new[key]:
            yield f"trials {'wanted' if key == 'target' else key}: {old[key]} became {new[key]}"
    if old["protocol_hash"] != new["protocol_hash"]:
        yield "the scoring protocol is another one: scores before and after do not compare"
    yield from _scores(old, new)
    yield from _confirmations(old, new)
    for change in changes(old["environment"], new["environment"]):
        yield f"environment {change}"


def _scores(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = ({row["trial"]: row["value"] for row in facts["ranked"]} for facts in (old, new))
    metric = new["metric"]
    if old["ranked"] and new["ranked"] and old["ranked"][0] != new["ranked"][0]:
        was, now = old["ranked"][0], new["ranked"][0]
        yield (
            f"best: trial {was['trial']} with {old['metric']} = {number(was['value'])} became "
            f"trial {now['trial']} with {metric} = {number(now['value'])}"
        )
    for trial in [trial for trial in after if trial not in before]:
        place = list(after).index(trial) + 1
        yield f"new: trial {trial} with {metric} = {number(after[trial])}, place {place} of {len(after)}"
    for trial in [trial for trial in before if trial not in after]:
        yield f"trial {trial}, which had {number(before[trial])}, is not ranked any more"
    if old["uid"] == new["uid"] and old["protocol_hash"] == new["protocol_hash"]:
        for trial in [trial for trial in before if trial in after and before[trial] != after[trial]]:
            yield f"WARNING: trial {trial} had {before[trial]!r} and has {after[trial]!r}: a finished one never changes"


def _confirmations(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = ({row["name"]: row for row in facts["confirmed"] or []} for facts in (old, new))
    for name, row in after.items():
        was = before.get(name)
        shown = f"{number(row['mean'])} from {row['n']} seeds"
        if was is None:
            yield f"confirmed: {name}, {shown}"
        elif was != row:
            yield f"confirmed: {name}, {number(was['mean'])} from {was['n']} seeds became {shown}"
    for name in before:
        if name not in after:
            yield f"{name} is not among the confirmed any more"
