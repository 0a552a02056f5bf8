"""Train a single configuration: checkpointed, continued, scored and logged like a trial."""

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
from harness.errors import DataError, Diverged, Interrupted, UsageError
from harness.gan.fast.precision import usual
from harness.gan.hparams import HParams, canonical_json, digest
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress, epoch_kimg
from harness.home import Home
from harness.machine.processes import choose_device, exact_arithmetic, keep_memory, on_device
from harness.machine.provenance import provenance
from harness.scoring.diversity import real_distance
from harness.scoring.reference import reference_images, split_images
from harness.scoring.sampling import GRID_IMAGES, GRID_SEED, image_grid, images_of, save_png, scoring_noise, walk
from harness.scoring.scorer import Scorer, Scorers
from harness.spec.tables import DataSpec, ScoreSpec
from harness.text import duration
from harness.training.attempt import Attempt, Degenerate, checked, checkpoint_every_s, columns, train_on_disk
from harness.training.export import layer_rows
from harness.training.run_folder import RunEnd, RunFolder, RunInfo, RunRecord

# At most this many grids, or the second number if a person says how often: checkpoints, pictures and MLflow images
# take time.
_MOST_GRIDS, _MOST_WANTED_GRIDS = 100, 1000
# A training of fewer epochs than this has this many grids instead of one each epoch.
_FEWEST_GRIDS = 10
# The walk between latents: rows, and images in each.
_WALKS, _STEPS = 4, 8
# Scoring this many images or fewer is short: its duration is not announced.
_QUICK_SAMPLES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A configuration with its data, seed, length and scoring protocol."""

    label: str  # names the folder and the run, such as svhn32-as_coded
    experiment: str  # in MLflow; not a study's, whose trials are ranked there
    hparams: HParams
    data: DataSpec
    seed: int
    scoring: ScoreSpec
    kimg: float | None = None  # length; None is ``epochs`` passes over the images
    epochs: float = 0.0
    fingerprint: str = ""  # of the images that the configuration was found on, if known; others are reported
    grid_images: int = GRID_IMAGES
    grid_kimg: float | None = None  # between grids; None: after every epoch, or ten in a short training
    fresh_grids: bool = False
    usual_precision: bool = False  # use the device's usual precision instead of the configuration's
    about: dict[str, Any] = field(default_factory=dict)  # more for its report


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended. ``scores`` is empty after an interruption, or if ``failed`` says why there are none.

    ``record`` is the path of its run's record.
    """

    folder: Path
    record: Path
    kimg: float
    interrupted: bool = False
    failed: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What a training reports to, and how it learns whether to stop. ``follow`` gets the path of its run's record."""

    stop: Callable[[], bool]
    say: Callable[[str], None]
    on_images: OnProgress
    on_progress: Callable[[Progress, float], None]
    follow: Callable[[Path], None] = lambda record: None


def run_training(training: Training, home: Home, *, source: Path | None, device: str, watch: Watch) -> Outcome:
    """Train to the end, score, and publish the weights. After an interruption the next call continues.

    If the training diverges, or its images cannot be scored, the outcome's ``failed`` says so.
    """
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
    marks = _marks(training, kimg, len(store))

    def interrupt() -> None:
        if watch.stop():
            raise Interrupted("interrupted")

    scorer = Scorers(home, store, own_device, watch.say, interrupt).scorer(training.scoring)
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
        # What differs from the plain DCGAN; the tag has the whole configuration.
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
    shown = min(training.grid_images, len(images))
    real = reference_images(images, shown).cpu().float().div(127.5).sub(1)
    save_png(folder.real, image_grid(real, columns=columns(shown)))
    watch.follow(attempt.record_path)
    watch.say(f"training to {kimg:g} kimg")
    try:
        for event in train_on_disk(
            attempt,
            images,
            budget=Budget(kimg=kimg, snapshots_kimg=marks),
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
            elif watch.stop():
                attempt.end("FAIL", {}, {"reason": "interrupted"})
                return Outcome(folder.path, attempt.record_path, event.kimg, interrupted=True)
        attempt.end("COMPLETE", {}, {"reason": "was trained already"})
        raise DataError(
            f"{name} was trained to {attempt.resumed_kimg:.1f} kimg already, more than {kimg:.1f}",
            f"Its results are in {folder.path}; for more, raise --kimg.",
        )
    except Interrupted as error:
        attempt.end("FAIL", {}, {"reason": str(error)})
        return Outcome(folder.path, attempt.record_path, kimg, interrupted=True)
    except (Diverged, Degenerate) as error:
        step = error.step if isinstance(error, Diverged) else training.hparams.updates(kimg)
        trained = step * training.hparams.images_per_step / 1000
        diverged = isinstance(error, Diverged)
        ended = {"failed": error.problem, "diverged": diverged, "trained_kimg": trained, "steps": step}
        _summarise(attempt, training, store, scorer, ended)
        attempt.end("FAIL", {}, {"reason": f"{type(error).__name__}: {error}"})
        return Outcome(folder.path, attempt.record_path, trained, failed=error.problem)
    except BaseException as error:
        if attempt.record.end is None:
            attempt.end("FAIL", {}, {"reason": f"{type(error).__name__}: {error}"})
        raise
    finally:
        lock.lock.release()


def _close_shorter(attempt: Attempt) -> None:
    """End the records of killed trainings to fewer kimg in the same folder: this one continues them."""
    for path in attempt.folder.records():
        record = RunRecord.read(path)
        if path != attempt.record_path and record.end is None:
            reason = {"reason": f"continued to {attempt.record.kimg:g} kimg"}
            end = RunEnd(state="FAIL", tags=reason, kimg=attempt.resumed_kimg)
            dataclasses.replace(record, end=end).write(path)


def _length(training: Training, store: ImageStore, say: Callable[[str], None]) -> float:
    """The training's length (kimg) on these images, which must be enough to score it."""
    available = len(split_images(store, training.scoring))
    if available < training.scoring.n_reference:
        raise DataError(
            f"{available} images are too few to score with {training.scoring.n_reference} real ones",
            f"Score with fewer (--samples {available}), or add images.",
        )
    if training.fingerprint and store.fingerprint != training.fingerprint:
        say("these are not the images that the configuration was found on: the score will not be comparable")
    return training.kimg or training.epochs * epoch_kimg(training.hparams, len(store))


def _marks(training: Training, kimg: float, n_images: int) -> tuple[float, ...]:
    """The kimg at which grids are drawn: as often as asked, after every epoch, or at ten even steps."""
    if every := training.grid_kimg:
        wanted = math.ceil(round(kimg / every, 6))
        if wanted > _MOST_WANTED_GRIDS:
            raise UsageError(
                f"a grid every {every:g} kimg would make {wanted:,} of them",
                f"At most {_MOST_WANTED_GRIDS:,} are drawn; use {kimg / _MOST_WANTED_GRIDS:.3g} kimg or more.",
            )
        return tuple(every * k for k in range(1, wanted))
    epoch = epoch_kimg(training.hparams, n_images)
    if epoch and kimg / epoch >= _FEWEST_GRIDS - 1e-9:
        epochs = round(kimg / epoch, 6)
        every = math.ceil(epochs / _MOST_GRIDS)
        return tuple(epoch * k for k in range(every, math.ceil(epochs), every))
    return tuple(kimg * k / _FEWEST_GRIDS for k in range(1, _FEWEST_GRIDS))


def _conclude(attempt: Attempt, training: Training, store: ImageStore, scorer: Scorer, last: Snapshot) -> Outcome:
    """Score the finished generator, publish its weights, and write the summary for the report."""
    hp, folder = training.hparams, attempt.folder
    path = walk(scoring_noise(_WALKS + 1, hp, GRID_SEED), _STEPS, hp.latent)
    save_png(folder.walk, image_grid(images_of(last.generator, path, attempt.device), columns=_STEPS))
    n = scorer.protocol.samples
    hint = ""
    if n > _QUICK_SAMPLES:
        takes = duration(scorer.seconds(last.generator, hp))
        hint = f", about {takes}; Ctrl-C stops it, the same command starts scoring again, --samples N scores fewer"
    attempt.say(f"scoring {n:,} images{hint}")
    scores = checked(scorer(last.generator, hp, all_metrics=True))
    attempt.publish(last)
    _summarise(attempt, training, store, scorer, {
        "failed": "",
        "diverged": False,
        "trained_kimg": last.kimg,
        "steps": last.step,
        "scores": scores.values,
        "unavailable": scores.unavailable,
        "score_s": round(scores.seconds, 1),
    })  # fmt: skip
    # An earlier interruption is over.
    again = {"reason": ""} if attempt.resumed_kimg else {}
    attempt.end("COMPLETE", scores.values, {"protocol_hash": scores.protocol_hash, **again})
    return Outcome(folder.path, attempt.record_path, last.kimg, scores=scores.values, unavailable=scores.unavailable)


def _summarise(
    attempt: Attempt, training: Training, store: ImageStore, scorer: Scorer, ended: Mapping[str, Any]
) -> None:
    """Write ``training.json``; ``ended`` has the entries about the end."""
    epoch = epoch_kimg(training.hparams, len(store))
    summary = {
        "label": training.label,
        "about": training.about,
        "kimg": attempt.record.kimg,
        "epochs": ended["trained_kimg"] / epoch if epoch else 0.0,
        "epoch_kimg": epoch,
        "seed": training.seed,
        "hparams": training.hparams.to_dict(),
        "layers": layer_rows(training.hparams),
        "data": training.data.model_dump(mode="json", exclude_none=True),
        "images": len(store),
        "split": store.split_rule,
        "fingerprint": store.fingerprint,
        "of_pixels": "; ".join(store.warnings),
        "scoring": training.scoring.model_dump(mode="json", exclude_none=True),
        "metric": scorer.objective,
        "protocol_hash": scorer.protocol.hash,
        "environment": provenance(attempt.device.type),
        "scores": {},
        "unavailable": {},
        **ended,
    }
    atomic.write_text(attempt.folder.summary, json.dumps(summary, indent=1) + "\n")
