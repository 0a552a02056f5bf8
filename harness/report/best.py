"""``best.toml``: the best configuration, as ``harness train --config`` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from harness import atomic
from harness.findings.confirmation import Confirmation
from harness.findings.statistics import LEVEL
from harness.store.records import StudyRecord, TrialRecord
from harness.training.run_folder import RunFolder


def best_toml(record: StudyRecord, root: Path, best: TrialRecord, confirmed: Confirmation | None = None) -> str:
    """The confirmed best with its interval, and the training of its median seed; else the search's best trial.

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
        tables["confirmed"] = _confirmed(confirmed)
    return tomli_w.dumps(tables)


def _confirmed(confirmed: Confirmation) -> dict[str, Any]:
    estimate = confirmed.best.estimate
    interval = {} if estimate.low is None else {"level": LEVEL, "low": estimate.low, "high": estimate.high}
    return {
        "configuration": confirmed.best.name,
        "metric": confirmed.metric,
        "mean": estimate.mean,
        **interval,
        "training_seeds": sorted(confirmed.best.trials),
        "samplings": confirmed.n_samplings,
        "ties": [arm.name for arm in confirmed.ties],
        "protocol_hash": confirmed.protocol_hash,
    }
