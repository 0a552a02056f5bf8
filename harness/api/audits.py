"""Auditing finished generators: BatchNorm's statistics, diversity, and copies of training images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from harness import atomic
from harness.api.generator import confirmed_best
from harness.data.store import OnProgress, open_store
from harness.errors import DataError, NotFoundError
from harness.findings.health import audited
from harness.findings.ranking import rank
from harness.gan.hparams import HParams
from harness.home import Home
from harness.machine.processes import choose_device, exact_arithmetic, keep_memory
from harness.scoring.diversity import RealImages, audit
from harness.scoring.protocol import MOBILENET
from harness.scoring.sampling import save_png
from harness.scoring.scorer import Scorer, Scorers
from harness.store.records import TrialRecord
from harness.store.studies import started_study, stored_spec, study_to_record
from harness.sweep.run import refuse_other_images
from harness.training.export import import_generator
from harness.training.run_folder import RunFolder
from harness.training.share import bring_results


def audit_study(
    study_name: str,
    home: Home,
    *,
    top: int,
    source: Path | None,
    device: str,
    on_images: OnProgress,
    say: Callable[[str], None],
) -> int:
    """Audit the best trials of a study, and the confirmed best; an audited one is left alone. Returns how many were.

    Each trial's folder gets ``audit.json``, and a picture of its samples with their nearest training images.

    Args:
        study_name: a started study.
        home: where it is.
        top: how many of the leaderboard's trials.
        source: the images, where the study's source needs them.
        device: where samples are drawn and scored.
        on_images: called with (done, total) while images are prepared.
        say: called with what is being done.

    Raises:
        NotFoundError: no trial is finished, or its weights are on another machine.
        DataError: images, weights or versions are not those of the study.
    """
    study = started_study(study_name, home)
    spec, record = stored_spec(study), study_to_record(study)
    bring_results(record, home, say)
    confirmed = confirmed_best(record, home, say)
    chosen = [*rank(record, top=top).trials, *([confirmed] if confirmed else [])]
    if not chosen:
        raise NotFoundError(
            f"no trial of {study_name} is finished yet", f"`make sweep STUDY={study_name}` continues it."
        )
    waiting = [trial for trial in chosen if audited(trial, home.root) is None]
    if not waiting:
        return 0
    keep_memory()
    exact_arithmetic()
    place = torch.device(choose_device(device))
    store = open_store(home, spec.data, source, study=study_name, on_progress=on_images, say=say)
    refuse_other_images(study, store.fingerprint)
    scorers = Scorers(home, store, place, say)
    scorer = scorers.scorer(spec.scoring.final)
    if others := [name_of(trial) for trial in waiting if trial.attrs.protocol_hash != scorer.protocol.hash]:
        raise DataError(
            f"{', '.join(others)}: scored under another protocol than this machine's ({scorer.protocol.hash})",
            "Weights or versions of torch and torch-fidelity differ: audit where the study ran, or with what it used.",
        )
    say(f"features of {len(store)} training images")
    real = RealImages(store.tensor(), scorers.extractor(MOBILENET))
    for trial in waiting:
        say(f"auditing {name_of(trial)}")
        hp = HParams.from_stored(trial.attrs.hparams, f"{name_of(trial)} of {study_name}")
        _audit(RunFolder(home.root / trial.attrs.folder), hp, scorer, real, place)
    return len(waiting)


def _audit(folder: RunFolder, hp: HParams, scorer: Scorer, real: RealImages, place: torch.device) -> None:
    result = audit(import_generator(folder.path, hp, place), hp, scorer, real)
    save_png(folder.nearest, result.pairs)
    stated = {**result.to_dict(), "protocol_hash": scorer.protocol.hash}
    atomic.write_text(folder.audit, json.dumps(stated, indent=1) + "\n")


def name_of(trial: TrialRecord) -> str:
    """A trial's name for people; of a fixed study the configuration's and its seed's."""
    return trial.attrs.preset if trial.attrs.arm else f"trial {trial.number}"
