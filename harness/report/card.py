"""A model card: what a generator was trained on and how, its scores, its limits, and the licence of its images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.findings.confirmation import best_training, confirmation
from harness.findings.headline import headline
from harness.findings.health import health
from harness.gan.hparams import LAWS, HParams
from harness.report.page import filled, squeezed
from harness.store.records import StudyRecord, TrialRecord
from harness.text import metric_label

_DATA = (
    "It generates images like its training images, at one size, with the same gaps and biases. If they show people, "
    "samples may resemble those people."
)
_ONE_SEED = "One training seed: how much of the score is chance is unknown."
# Shown whether or not they differ from the defaults.
_ALWAYS = ("image_size", "batch_size", "lr_g", "lr_d", "beta1", "beta2", "bn", "activation_g", "activation_d", "latent")


def study_card(record: StudyRecord, plan: StudyRecord | None, trial: TrialRecord, root: Path, licence: str) -> str:
    """The card of a trial of a search, or of its confirmation (``plan``); ``root`` is the home folder."""
    attrs, spec = record.attrs, record.attrs.spec
    metric, kimg = attrs.final_metric, float(spec["budget"]["kimg"])
    found = confirmation(record, plan) if plan and trial.attrs.arm else None
    arm = next((arm for arm in found.ranked if arm.name == trial.attrs.arm), None) if found else None
    rows = _rows(trial.attrs.scores)
    seeds = _ONE_SEED
    if arm:
        mean = arm.estimate
        rows.insert(0, {"name": f"{metric_label(metric)}, mean", "value": mean.mean, "estimate": mean})
        seeds = f"The mean is over {mean.n} training seeds; the other scores are those of the median training."
    checked = health(f"trial {trial.number}", trial, root)
    audit = f"Not audited for copies of its training images: `harness audit {record.name}`."
    what = f"Trial {trial.number} of {record.name}, which need not be its best."
    if trial == best_training(record, plan) and not spec.get("plan"):
        verdict = headline(record, plan)
        what = f"{verdict.text} {verdict.reason}"
    return _card(
        name=record.name,
        what=what,
        hparams=trial.attrs.hparams,
        dataset=attrs.dataset,
        licence=licence,
        kimg=kimg,
        updates=trial.updates(kimg),
        seed=trial.attrs.seed,
        scoring=spec["scoring"]["final"],
        protocol_hash=trial.attrs.protocol_hash,
        scores=rows,
        seeds=seeds,
        limits=[*checked.findings, *([audit] if checked.nearer is None else [])],
        environment=attrs.environment,
    )


def training_card(name: str, summary: Mapping[str, Any], licence: str) -> str:
    """The card of a ``harness train``, from its ``training.json``."""
    hparams = summary["hparams"]
    return _card(
        name=name,
        what=f"One training of {summary['label']}.",
        hparams=hparams,
        dataset={**summary["data"], "images": summary["images"], "fingerprint": summary["fingerprint"]},
        licence=licence,
        kimg=summary["trained_kimg"],
        updates=summary["steps"],
        seed=summary["seed"],
        scoring=summary["scoring"],
        protocol_hash=summary["protocol_hash"],
        scores=_rows(summary["scores"]),
        seeds=_ONE_SEED,
        limits=["Not audited for copies of its training images."],
        environment=summary["environment"],
    )


def _rows(scores: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"name": metric_label(name), "value": value, "estimate": None} for name, value in scores.items()]


def _card(*, hparams: Mapping[str, Any], scoring: Mapping[str, Any], limits: list[str], **context: Any) -> str:
    small = scoring["samples"] < 10_000
    compare = "Scores compare only under the same protocol" + (
        f"; of {scoring['samples']:,} images they are noisy, and not comparable with published ones." if small else "."
    )
    defaults = HParams().to_dict()
    shown = defaults | dict(hparams)
    return squeezed(
        filled(
            "card.md.j2",
            **context,
            hparams=shown,
            law=LAWS[shown["latent"]],
            changed={name: value for name, value in hparams.items() if name in _ALWAYS or value != defaults.get(name)},
            scoring=scoring,
            reference=scoring["reference"] if scoring["reference"] == "all" else f"{scoring['reference']:,}",
            limits=[compare, *limits, _DATA],
        )
    )
