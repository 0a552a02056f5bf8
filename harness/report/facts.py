"""What a report states, for machines: ``report.json``, ``best.toml``, and what changed between two reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from harness import atomic
from harness.errors import NotFoundError, UsageError
from harness.findings.confirmation import Confirmation
from harness.findings.headline import Headline
from harness.findings.health import Health
from harness.findings.ranking import leading, rank
from harness.findings.statistics import LEVEL
from harness.spec.resolved import changes
from harness.store.records import StudyRecord, TrialRecord
from harness.text import number
from harness.training.run_folder import RunFolder

FACTS_FILE = "report.json"
# What is measured of a training's health, in words.
_HEALTH = {
    "distance": "distance between samples (real = 1)",
    "variance": "variance of features (real = 1)",
    "won": "share of the second half in which the discriminator had won",
    "score": "audited score",
    "batch_score": "audited score with batch statistics",
    "nearer": "probability of being nearer to a training image than other real images are",
}
# What :func:`report_diff` compares.
_KEYS = {
    "study", "uid", "metric", "protocol_hash", "target", "finished", "ranked", "spec", "environment", "fingerprint",
}  # fmt: skip
_Facts = Mapping[str, Any]


def facts(
    record: StudyRecord,
    confirmed: Confirmation | None,
    watched: Sequence[Health] = (),
    verdict: Headline | None = None,
) -> str:
    """The report's statements as JSON: the same record, and the same health of its best trainings, the same bytes."""
    board = rank(record)
    stated = {
        "study": record.name,
        "uid": record.attrs.uid,
        "headline": asdict(verdict) if verdict else None,
        "metric": record.attrs.final_metric,
        "protocol_hash": board.protocol_hash,
        "target": record.attrs.target,
        "finished": sum(trial.state in ("COMPLETE", "PRUNED") for trial in record.trials),
        "ranked": [
            {"trial": trial.number, "value": trial.value, "hparams": trial.attrs.hparams} for trial in leading(record)
        ],
        "ended": {
            str(t.number): {"state": t.state, "reason": t.reason}
            for t in record.trials
            if t.state not in ("COMPLETE", "WAITING", "RUNNING")
        },
        "confirmed": [
            {"name": arm.name, **asdict(arm.estimate), "verdict": confirmed.verdict(arm)} for arm in confirmed.ranked
        ]
        if confirmed
        else None,
        "health": {
            row.name: {
                "findings": row.findings,
                "measured": {label: getattr(row, name) for name, label in _HEALTH.items()},
            }
            for row in watched
        },
        "spec": record.attrs.spec,
        "environment": record.attrs.environment,
        "fingerprint": record.attrs.dataset["fingerprint"],
    }
    return json.dumps(stated, indent=1, sort_keys=True) + "\n"


def best_toml(record: StudyRecord, root: Path, best: TrialRecord, confirmed: Confirmation | None) -> str:
    """What ``harness train --config`` reads: the confirmed best's median training, else the search's best.

    Its weights are named with their sha256 where they are below ``root``, the home folder.
    """
    spec = record.attrs.spec
    chosen = confirmed.best.median_trial if confirmed else best
    tables = {
        "study": confirmed.study if confirmed else record.name,
        "trial": chosen.number,
        "hparams": dict(chosen.attrs.hparams),
        "data": {**spec["data"], "fingerprint": record.attrs.dataset["fingerprint"]},
        "training": {"seed": chosen.attrs.seed, "kimg": spec["budget"]["kimg"]},
        "scoring": spec["scoring"]["final"],
        "score": {
            "metric": record.attrs.final_metric,
            "value": chosen.value,
            "protocol_hash": chosen.attrs.protocol_hash,
        },
    }
    weights = RunFolder(root / chosen.attrs.folder).weights
    if weights.is_file():
        path = weights.relative_to(root).as_posix()
        tables["weights"] = {"path": path, "sha256": atomic.file_sha256(weights)}
    if confirmed:
        estimate = confirmed.best.estimate
        interval = {} if estimate.low is None else {"level": LEVEL, "low": estimate.low, "high": estimate.high}
        tables["confirmed"] = {
            "configuration": confirmed.best.name,
            "metric": confirmed.metric,
            "mean": estimate.mean,
            **interval,
            "training_seeds": sorted(confirmed.best.trials),
            "samplings": confirmed.n_samplings,
            "ties": [arm.name for arm in confirmed.ties],
            "protocol_hash": confirmed.protocol_hash,
        }
    return tomli_w.dumps(tables)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a report, by its folder or by a file in it; a NotFoundError if there is none, or it is damaged."""
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


def report_diff(old: _Facts, new: _Facts) -> Iterator[str]:
    """What changed from one report of a study to another, a line each; a UsageError if they are of two studies."""
    if old["study"] != new["study"]:
        raise UsageError(
            f"these are reports of two studies, {old['study']} and {new['study']}",
            f"Say `harness report {old['study']} {new['study']}` to compare studies.",
        )
    if old["uid"] != new["uid"]:
        yield "the study was started again from scratch in between: its trials are different ones"
    yield from (f"setting {change}" for change in changes(old["spec"], new["spec"]))
    if old["fingerprint"] != new["fingerprint"]:
        yield f"images: {old['fingerprint'][:12]} became {new['fingerprint'][:12]}"
    for key, name in (("finished", "finished"), ("target", "wanted")):
        if old[key] != new[key]:
            yield f"trials {name}: {old[key]} became {new[key]}"
    if old["protocol_hash"] != new["protocol_hash"]:
        yield "the scoring protocol changed: scores before and after do not compare"
    yield from _scores(old, new)
    yield from _confirmations(old, new)
    if "health" in old and "health" in new:  # reports of before they said it have none
        yield from _health(old["health"], new["health"])
    yield from (f"environment {change}" for change in changes(old["environment"], new["environment"]))


def _scores(old: _Facts, new: _Facts) -> Iterator[str]:
    before, after = ({row["trial"]: row["value"] for row in facts["ranked"]} for facts in (old, new))
    metric = new["metric"]
    if old["ranked"] and new["ranked"] and old["ranked"][0] != new["ranked"][0]:
        was, now = old["ranked"][0], new["ranked"][0]
        yield (
            f"best: trial {was['trial']} with {old['metric']} = {number(was['value'])} became "
            f"trial {now['trial']} with {metric} = {number(now['value'])}"
        )
    for place, (trial, value) in enumerate(after.items(), start=1):
        if trial not in before:
            yield f"new: trial {trial} with {metric} = {number(value)}, place {place} of {len(after)}"
    for trial, value in before.items():
        if trial not in after:
            yield f"trial {trial}, which had {number(value)}, is no longer ranked"
    if old["uid"] == new["uid"] and old["protocol_hash"] == new["protocol_hash"]:
        for trial, value in before.items():
            if trial in after and value != after[trial]:
                yield f"WARNING: trial {trial} had {value!r} and has {after[trial]!r}: finished trials never change"


def _confirmations(old: _Facts, new: _Facts) -> Iterator[str]:
    before, after = ({row["name"]: row for row in facts["confirmed"] or []} for facts in (old, new))
    for name, row in after.items():
        was = before.get(name)
        if was is None:
            yield f"confirmed: {name}, {_estimate(row, number)}"
        elif was != row:
            # Where a change is too small for the digits that are shown, all of them are.
            shown = number if _estimate(was, number) != _estimate(row, number) else repr
            yield f"confirmed: {name}, {_estimate(was, shown)} became {_estimate(row, shown)}"
    yield from (f"{name} is no longer confirmed" for name in before if name not in after)


def _estimate(row: _Facts, shown: Callable[[Any], str]) -> str:
    """Mean, interval, seeds and verdict; reports from before there were verdicts have none."""
    interval = "" if row["low"] is None else f" ({shown(row['low'])} to {shown(row['high'])})"
    verdict = f", {row['verdict']}" if "verdict" in row else ""
    return f"{shown(row['mean'])}{interval} from {row['n']} seeds{verdict}"


def _health(old: _Facts, new: _Facts) -> Iterator[str]:
    """Findings that came and went, and measurements that changed, of trainings that both reports show."""
    for name, row in new.items():
        was = old.get(name)
        if was is None:
            yield from (f"new finding on {name}, which was not shown before: {text}" for text in row["findings"])
            continue
        yield from (f"new finding on {name}: {text}" for text in row["findings"] if text not in was["findings"])
        yield from (f"gone from {name}: {text}" for text in was["findings"] if text not in row["findings"])
        for change in changes(was["measured"], row["measured"]):
            shown = number if number(change.old) != number(change.new) else repr
            yield f"health of {name}: {change.key} was {shown(change.old)}, is {shown(change.new)}"
