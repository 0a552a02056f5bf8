"""One configuration trained on its own: checkpointed, continued, scored and logged like a trial."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from harness import atomic
from harness.data.store import ImageStore, OnProgress, open_store
from harness.errors import DataError, UsageError
from harness.gan.fast.precision import usual
from harness.gan.hparams import HParams, canonical_json, digest
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress, epoch_kimg
from harness.home import Home
from harness.machine.processes import choose_device, exact_arithmetic, keep_memory, on_device
from harness.machine.provenance import provenance
from harness.scoring.diversity import real_distance
from harness.scoring.reference import split_images
from harness.scoring.sampling import GRID_IMAGES
from harness.scoring.scorer import Scorer, Scorers
from harness.spec.tables import DataSpec, ScoreSpec
from harness.training.attempt import Attempt, checked, checkpoint_every_s, train_on_disk
from harness.training.run_folder import RunEnd, RunFolder, RunInfo, RunRecord

# No more grids than this: every checkpoint, picture and MLflow image costs.
_MOST_GRIDS = 100
# A training shorter than this many epochs has as many sample grids along its way instead.
_FEWEST_GRIDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A configuration with its data, seed, length and scoring protocol."""

    label: str  # names the folder and the run, such as svhn32-as_coded
    experiment: str  # in the tracker; not a study's, whose trials are ranked there
    hparams: HParams
    data: DataSpec
    seed: int
    scoring: ScoreSpec
    kimg: float | None = None  # length; None is ``epochs`` passes over the images
    epochs: float = 0.0
    fingerprint: str = ""  # of the images that the configuration was found on; training on others is said; empty: any
    grid_images: int = GRID_IMAGES
    fresh_grids: bool = False
    usual_precision: bool = False  # that of the device it runs on, instead of the configuration's
    about: dict[str, Any] = field(default_factory=dict)  # what its report says in addition to the figures


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended. ``scores`` is empty where it was interrupted; ``record`` is the path of its run's."""

    folder: Path
    record: Path
    kimg: float
    interrupted: bool
    scores: Mapping[str, float] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Whom a training tells, and asks whether to stop. ``follow`` gets the path of its run's record."""

    stop: Callable[[], bool]
    say: Callable[[str], None]
    on_images: OnProgress
    on_progress: Callable[[Progress, float], None]
    follow: Callable[[Path], None] = lambda record: None


def run_training(training: Training, home: Home, *, source: Path | None, device: str, watch: Watch) -> Outcome:
    """Train to the end, score, and publish the weights. Interrupted, it is continued by the next call."""
    keep_memory()
    exact_arithmetic()
    own_device = torch.device(choose_device(device))
    if training.usual_precision:
        hparams = dataclasses.replace(training.hparams, precision=usual(own_device))
        training = dataclasses.replace(training, hparams=hparams)
    store = open_store(home, training.data, source, study=training.label, on_progress=watch.on_images, say=watch.say)
    scoring = training.scoring.with_reference_of(len(split_images(store, training.scoring)))
    training = dataclasses.replace(training, scoring=scoring)
    kimg = _length(training, store, watch.say)
    images = on_device(store.tensor(), own_device)
    scorer = Scorers(home, store, own_device, watch.say).scorer(training.scoring)
    # The same configuration, seed and images continue the same training, also for longer.
    name = f"{training.label}-{digest([training.hparams.to_dict(), training.seed, store.fingerprint])[:8]}"
    folder = RunFolder(home.training_dir(name))
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder.lock, timeout=0).acquire()
    except Timeout:
        raise UsageError(f"training {name} is running already", "Wait for it, or use another --seed.") from None
    configuration, plain = training.hparams.to_dict(), HParams().to_dict()
    info = RunInfo(
        key=f"{training.experiment}/training/{name}/{kimg:g}",
        name=f"{training.label} to {kimg:g} kimg",
        experiment=training.experiment,
        # What tells it from the plain DCGAN; the tag has the whole configuration.
        params={name: value for name, value in configuration.items() if value != plain.get(name)},
        tags={
            **provenance(own_device.type), "role": "training", "study": training.label, "seed": str(training.seed),
            "hparams": canonical_json(configuration), "protocol_hash": scorer.protocol.hash,
            **{name: str(value) for name, value in training.about.items() if name in ("recipe", "variant")},
        },
        dataset=store.named(training.data.source),
        dataset_digest=store.fingerprint,
        dataset_source=store.named(training.data.source),
    )  # fmt: skip
    attempt = Attempt(
        folder, training.hparams, training.seed, RunRecord(info=info, kimg=kimg), own_device,
        say=watch.say, real_distance=real_distance(images),
    ).open()  # fmt: skip
    _close_shorter(attempt)
    watch.follow(attempt.record_path)
    try:
        for event in train_on_disk(
            attempt,
            images,
            budget=Budget(kimg=kimg, snapshots_kimg=_marks(training, kimg, len(images))),
            stop=watch.stop,
            checkpoint_s=checkpoint_every_s(),
            grid_images=training.grid_images,
            fresh_grids=training.fresh_grids,
        ):
            if isinstance(event, Progress):
                watch.on_progress(event, kimg)
            elif isinstance(event, Snapshot):
                if event.mark == kimg:
                    return _conclude(attempt, training, store, scorer, event)
            elif watch.stop() and event.mark != kimg:  # what is trained to the end is scored as well
                attempt.end("FAIL", {}, {"reason": "interrupted"})
                return Outcome(folder.path, attempt.record_path, event.kimg, interrupted=True)
        attempt.end("COMPLETE", {}, {"reason": "was trained already"})
        raise DataError(
            f"{name} was trained to {attempt.resumed_kimg:.1f} kimg already, more than {kimg:.1f}",
            f"Its results are in {folder.path}; give more with --kimg.",
        )
    except BaseException as error:
        if attempt.record.end is None:
            attempt.end("FAIL", {}, {"reason": f"{type(error).__name__}: {error}"})
        raise
    finally:
        lock.lock.release()


def _close_shorter(attempt: Attempt) -> None:
    """End the records of trainings to fewer kimg in the same folder that were killed: this one continues them."""
    for path in attempt.folder.records():
        record = RunRecord.read(path)
        if path != attempt.record_path and record.end is None:
            reason = {"reason": f"continued to {attempt.record.kimg:g} kimg"}
            end = RunEnd(state="FAIL", tags=reason, kimg=attempt.resumed_kimg)
            dataclasses.replace(record, end=end).write(path)


def _length(training: Training, store: ImageStore, say: Callable[[str], None]) -> float:
    """The training's length (kimg) on these images, which must be enough to score it."""
    there = len(split_images(store, training.scoring))
    if there < training.scoring.n_reference:
        raise DataError(
            f"{there} images are too few to score with {training.scoring.n_reference} real ones",
            f"Score with fewer: --samples {there}, or give more images.",
        )
    if training.fingerprint and store.fingerprint != training.fingerprint:
        say("these are not the images that the configuration was found on: its score will not be comparable")
    return training.kimg or training.epochs * epoch_kimg(training.hparams, len(store))


def _marks(training: Training, kimg: float, n_images: int) -> tuple[float, ...]:
    """Where sample grids are drawn: after every epoch, or in ten even steps of a shorter training."""
    epoch = epoch_kimg(training.hparams, n_images)
    if epoch and kimg / epoch >= _FEWEST_GRIDS - 1e-9:
        epochs = round(kimg / epoch, 6)
        every = math.ceil(epochs / _MOST_GRIDS)
        return tuple(epoch * k for k in range(every, math.ceil(epochs), every))
    return tuple(kimg * k / _FEWEST_GRIDS for k in range(1, _FEWEST_GRIDS))


def _conclude(attempt: Attempt, training: Training, store: ImageStore, scorer: Scorer, last: Snapshot) -> Outcome:
    """Score the finished generator, publish its weights, and write what a report needs besides the other files."""
    attempt.say("scoring")
    scores = checked(scorer(last.generator, training.hparams, all_metrics=True))
    attempt.publish(last)
    kimg = attempt.record.kimg
    epoch = epoch_kimg(training.hparams, len(store))
    summary = {
        "label": training.label,
        "about": training.about,
        "kimg": kimg,
        "epochs": kimg / epoch if epoch else 0.0,
        "seed": training.seed,
        "hparams": training.hparams.to_dict(),
        "data": training.data.model_dump(mode="json", exclude_none=True),
        "images": len(store),
        "split": store.split_rule,
        "fingerprint": store.fingerprint,
        "scoring": training.scoring.model_dump(mode="json", exclude_none=True),
        "metric": scorer.objective,
        "protocol_hash": scorer.protocol.hash,
        "environment": provenance(attempt.device.type),
        "trained_kimg": last.kimg,
        "steps": last.step,
        "scores": scores.values,
        "unavailable": scores.unavailable,
        "score_s": round(scores.seconds, 1),
    }
    atomic.write_text(attempt.folder.summary, json.dumps(summary, indent=1) + "\n")
    # Why it was interrupted before is no longer true.
    again = {"reason": ""} if attempt.resumed_kimg else {}
    attempt.end("COMPLETE", scores.values, {"protocol_hash": scores.protocol_hash, **again})
    return Outcome(
        attempt.folder.path, attempt.record_path, last.kimg, interrupted=False,
        scores=scores.values, unavailable=scores.unavailable,
    )  # fmt: skip
