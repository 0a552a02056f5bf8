"""What a report states, for machines: ``report.json``, and what changed between two of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.errors import NotFoundError, UsageError
from harness.findings.confirmation import Confirmation
from harness.findings.health import Health
from harness.findings.ranking import rank
from harness.spec.resolved import changes
from harness.store.records import StudyRecord
from harness.text import number

FACTS_FILE = "report.json"
# What is known of a training's health, in words.
_HEALTH = {
    "distance": "distance between samples (real = 1)",
    "variance": "variance of features (real = 1)",
    "won": "share of the second half in which the discriminator had won",
    "score": "audited score",
    "batch_score": "audited score with batch statistics",
    "nearer": "probability of being nearer to a training image than other real images are",
}


def facts(record: StudyRecord, confirmed: Confirmation | None, watched: Sequence[Health] = ()) -> str:
    """The report's statements as JSON: the same record, and the same health of its best trainings, the same bytes."""
    board = rank(record)
    stated = {
        "study": record.name,
        "uid": record.attrs.uid,
        "metric": record.attrs.final_metric,
        "protocol_hash": board.protocol_hash,
        "target": record.attrs.target,
        "finished": sum(trial.state in ("COMPLETE", "PRUNED") for trial in record.trials),
        "ranked": [
            {"trial": trial.number, "value": trial.value, "hparams": trial.attrs.hparams} for trial in board.trials
        ],
        "ended": {
            str(t.number): {"state": t.state, "reason": t.reason}
            for t in record.trials
            if t.state not in ("COMPLETE", "WAITING", "RUNNING")
        },
        "confirmed": _confirmed(confirmed) if confirmed else None,
        "health": {row.name: {"findings": row.findings, "measured": _measured(row)} for row in watched},
        "spec": record.attrs.spec,
        "environment": record.attrs.environment,
        "fingerprint": record.attrs.dataset["fingerprint"],
    }
    return json.dumps(stated, indent=1, sort_keys=True) + "\n"


def _confirmed(confirmed: Confirmation) -> list[dict[str, Any]]:
    return [{"name": arm.name, **asdict(arm.estimate), "verdict": confirmed.verdict(arm)} for arm in confirmed.ranked]


def _measured(row: Health) -> dict[str, float | None]:
    return {label: getattr(row, name) for name, label in _HEALTH.items()}


# What :func:`report_diff` compares.
_KEYS = {
    "study", "uid", "metric", "protocol_hash", "target", "finished", "ranked", "spec", "environment", "fingerprint",
}  # fmt: skip


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a report, by its folder or by a file in it.

    Raises:
        NotFoundError: there is none, or it cannot be read.
    """
    folder = path.parent if path.is_file() else path
    try:
        stated: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        if not isinstance(stated, dict) or not stated.keys() >= _KEYS:
            raise ValueError("it is not one")
        return stated
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
        yield "the study was started again from scratch in between: its trials are different ones"
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
    yield from _health(old, new)
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
        if was is None:
            yield f"confirmed: {name}, {_estimate(row, number)}"
        elif was != row:
            # Where a change is too small for the digits that are shown, all of them are.
            shown = number if _estimate(was, number) != _estimate(row, number) else repr
            yield f"confirmed: {name}, {_estimate(was, shown)} became {_estimate(row, shown)}"
    for name in before:
        if name not in after:
            yield f"{name} is not among the confirmed any more"


def _estimate(row: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    """Mean, interval, seeds and verdict; reports from before there were verdicts have none."""
    interval = "" if row["low"] is None else f" ({shown(row['low'])} to {shown(row['high'])})"
    verdict = f", {row['verdict']}" if "verdict" in row else ""
    return f"{shown(row['mean'])}{interval} from {row['n']} seeds{verdict}"


def _health(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Findings that came and went, and measurements that changed, of trainings that both reports show."""
    if "health" not in old or "health" not in new:
        return  # one was written before reports said it
    for name, row in new["health"].items():
        was = old["health"].get(name)
        if was is None:
            yield from (f"found of {name}, which was not shown before: {text}" for text in row["findings"])
            continue
        yield from (f"found of {name}: {text}" for text in row["findings"] if text not in was["findings"])
        yield from (f"no longer found of {name}: {text}" for text in was["findings"] if text not in row["findings"])
        for change in changes(was["measured"], row["measured"]):
            shown = number if number(change.old) != number(change.new) else repr
            yield f"health of {name}: {change.key} was {shown(change.old)}, is {shown(change.new)}"
