"""One configuration trained on its own: checkpointed, continued, scored and logged like a trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.data.store import open_store
from harness.errors import DataError
from harness.gan.trainer import Budget, Progress, Snapshot, train
from harness.home import Home
from harness.scoring.scorer import Scorer, Scorers
from harness.study.hparams import HParams, digest
from harness.study.spec import DataSpec, ScoreSpec
from harness.sweep.attempt import Attempt
from harness.sweep.objective import CHECKPOINT_EVERY_S, checked
from harness.sweep.processes import exact_arithmetic
from harness.sweep.provenance import provenance
from harness.sweep.run import choose_device
from harness.tracking.mlflow import MlflowTracker, client_for, open_experiment
from harness.tracking.tracker import RunInfo

# Sample grids along a training.
_GRIDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A configuration with its data, seed, length (kimg) and scoring protocol.

    ``fingerprint`` is of the images that the configuration was found on; training on others is said.
    """

    study: str
    hparams: HParams
    data: DataSpec
    seed: int
    kimg: float
    scoring: ScoreSpec
    fingerprint: str

    @property
    def name(self) -> str:
        """The folder's name: the same configuration and seed continue the same training, also for longer."""
        return f"{self.study}-{digest([self.hparams.to_dict(), self.seed, self.fingerprint])[:8]}"


def run_training(
    training: Training,
    home: Home,
    *,
    source: Path | None,
    device: str,
    stop: Callable[[], bool],
    say: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> str:
    """Train to ``training.kimg``, score, and publish the weights; return a sentence on the result.

    Interrupted, it says so and is continued by the next call.

    Raises:
        HarnessError: data, weights, divergence, or a generator that cannot be scored.
    """
    exact_arithmetic()
    hp, place = training.hparams, torch.device(choose_device(device))
    store = open_store(home, training.data, source, study=training.study, on_progress=lambda *_: None, say=say)
    if len(store) < training.scoring.reference:
        raise DataError(f"{len(store)} images are too few to score with {training.scoring.reference} real ones")
    if store.fingerprint != training.fingerprint:
        say("these are not the images that the configuration was found on: its score will not be comparable")
        training = dataclasses.replace(training, fingerprint=store.fingerprint)
    images = store.tensor().to(place) if place.type == "cuda" else store.tensor()
    client = client_for(home)
    tracker = MlflowTracker(client, open_experiment(client, home, training.study))
    say("reference statistics")
    scorer = Scorers(home, images, store.fingerprint, place, say).scorer(training.scoring)
    folder = home.training_dir(training.name)
    info = RunInfo(
        key=f"{training.study}/training/{training.name}/{training.kimg:g}",
        name=f"training {training.name} to {training.kimg:g} kimg",
        params=hp.to_dict(),
        tags={**provenance(place.type), "role": "training", "study": training.study, "seed": str(training.seed)},
        dataset=training.data.source,
        dataset_digest=store.fingerprint,
        dataset_source=training.data.source,
    )
    attempt = Attempt(folder, hp, training.seed, tracker, info, place)
    try:
        return _train(attempt, training, images, place, scorer, stop, on_progress)
    except BaseException as error:
        attempt.end("FAIL", {}, {"reason": f"{type(error).__name__}: {error}"})
        raise


def _train(
    attempt: Attempt,
    training: Training,
    images: Tensor,
    place: torch.device,
    scorer: Scorer,
    stop: Callable[[], bool],
    on_progress: Callable[[Progress], None],
) -> str:
    hp, folder = training.hparams, attempt.folder
    marks = tuple(training.kimg * k / _GRIDS for k in range(1, _GRIDS))
    for event in train(
        hp,
        images,
        budget=Budget(kimg=training.kimg, snapshots_kimg=marks),
        seed=training.seed,
        device=place,
        resume=attempt.state,
        snapshot_now=lambda: stop() or attempt.due(CHECKPOINT_EVERY_S),
    ):
        if isinstance(event, Progress):
            attempt.progress(event)
            on_progress(event)
            continue
        attempt.save(event)
        if stop() and (event.mark is None or event.mark < training.kimg):
            attempt.end("FAIL", {}, {"reason": "interrupted"})
            return f"interrupted at {event.kimg:.1f} kimg; the same command continues from there ({folder})"
        if event.mark is not None:
            attempt.grid(event, event.mark, final=event.mark == training.kimg)
        if event.mark == training.kimg:
            return _finish(attempt, event, hp, scorer, folder)
    attempt.end("COMPLETE", {}, {"reason": "was trained already"})
    return f"already trained to {attempt.resumed_kimg:.1f} kimg: {folder}; give more with --kimg"


def _finish(attempt: Attempt, event: Snapshot, hp: HParams, scorer: Scorer, folder: Path) -> str:
    scores = checked(scorer(event.generator, hp, all_metrics=True))
    attempt.publish(event)
    attempt.end("COMPLETE", scores.values, {"protocol_hash": scores.protocol_hash})
    listed = ", ".join(f"{name} {value:.4g}" for name, value in scores.values.items())
    missing = "".join(f"\n{name} is unavailable: {why}" for name, why in scores.unavailable.items())
    return f"trained {event.kimg:.1f} kimg: {listed}\nweights, grids and curve are in {folder}{missing}"
