"""``best.toml``: the best configuration, as ``harness train --config`` reads it."""

from __future__ import annotations

from typing import Any

import tomli_w

from harness.findings.confirmation import Confirmation
from harness.findings.statistics import LEVEL
from harness.store.records import StudyRecord, TrialRecord


def best_toml(record: StudyRecord, best: TrialRecord, found: Confirmation | None = None) -> str:
    """The confirmed best with its interval, and the training of its median seed; else the search's best trial."""
    spec = record.attrs.spec
    chosen = found.best.median_trial if found else best
    tables = {
        "study": found.study if found else record.name,
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
    if found:
        tables["confirmed"] = _confirmed(found)
    return tomli_w.dumps(tables)


def _confirmed(found: Confirmation) -> dict[str, Any]:
    estimate = found.best.estimate
    interval = {} if estimate.low is None else {"level": LEVEL, "low": estimate.low, "high": estimate.high}
    return {
        "configuration": found.best.name,
        "metric": found.metric,
        "mean": estimate.mean,
        **interval,
        "training_seeds": sorted(found.best.trials),
        "samplings": found.n_samplings,
        "ties": [arm.name for arm in found.ties],
        "protocol_hash": found.protocol_hash,
    }
