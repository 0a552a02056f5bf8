"""One attempt at a training: its folder, its checkpoints and what they keep, and its run in the tracker."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from harness import atomic
from harness.gan.hparams import HParams, canonical_json, digest
from harness.gan.run import Snapshot
from harness.gan.trainer import Progress
from harness.scoring.diversity import mean_distance
from harness.scoring.sampling import GRID_IMAGES, GRID_SEED, generate, image_grid
from harness.tracking.tracker import Point, RunInfo, Tracker
from harness.training.checkpoint import export_generator, save_checkpoint
from harness.training.history import History
from harness.training.resume import inherit, resume
from harness.training.run_folder import RunFolder, newest_first
from harness.training.share import Share

_KEEP = 2


@dataclass(slots=True, kw_only=True)
class Attempt:
    """Keeps everything of a training that must survive it.

    Attributes:
        folder: of this attempt alone, so that one that was declared dead can overwrite nothing of its successor's.
        hp, seed: the configuration, and the seed of weights, data order and noise.
        device: where it is trained.
        state: of the checkpoint that it continues; None where it begins.
        history: what goes into the next checkpoint.
        resumed_kimg: where it began.
        tracker, run_id: where it is logged.
        earlier: folders of the attempts that it continues, oldest first.
        foreign: checkpoints in these folders that are of another training.
        fence: called before anything is published; raises where this attempt was declared dead.
        share: where workers of other machines find the checkpoints.
        say: told about damaged checkpoints, and about a share that cannot be reached.
        real_distance: between real images, as of :func:`harness.scoring.diversity.mean_distance`; 0 if unknown.
        ended: whether its run was closed.
    """

    folder: RunFolder
    hp: HParams
    seed: int
    device: torch.device
    state: dict[str, Any] | None
    history: History
    tracker: Tracker
    run_id: str
    earlier: Sequence[RunFolder]
    foreign: frozenset[Path]
    fence: Callable[[], None]
    share: Share | None
    say: Callable[[str], None]
    real_distance: float
    resumed_kimg: float
    ended: bool = False
    pending: list[Point] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def open(
        cls,
        folder: RunFolder,
        hp: HParams,
        seed: int,
        tracker: Tracker,
        info: RunInfo,
        device: torch.device,
        *,
        earlier: Sequence[RunFolder] = (),
        fence: Callable[[], None] = lambda: None,
        share: Share | None = None,
        say: Callable[[str], None] = lambda text: None,
        real_distance: float = 0.0,
    ) -> Self:
        """Make the folder, find the checkpoint to continue from, and open the run in the tracker."""
        earlier = [before for before in earlier if before != folder]
        inherit(folder, earlier, share, say)
        found = resume(folder, earlier, digest([hp.to_dict(), seed, info.dataset_digest]), device, say)
        attempt = cls(
            folder=folder,
            hp=hp,
            seed=seed,
            device=device,
            state=found.state,
            history=found.history,
            tracker=tracker,
            run_id=tracker.start(info),
            earlier=earlier,
            foreign=found.foreign,
            fence=fence,
            share=share,
            say=say,
            real_distance=real_distance,
            resumed_kimg=found.state["step"] * hp.images_per_step / 1000 if found.state else 0.0,
        )
        atomic.write_text(folder.hparams, canonical_json(hp.to_dict()) + "\n")
        tracker.artifact(attempt.run_id, folder.hparams)
        for row in attempt.history.curve:
            attempt._queue(row)
        return attempt

    def log_again(self, rung_metric: str) -> None:
        """Log what the attempt before this one had reached: its rung scores and sample grids."""
        rungs = self.history.rungs
        self.tracker.log(self.run_id, [Point(rung_metric, value, step) for step, value in rungs.items()])
        for step, values in self.history.watched.items():
            self.tracker.log(self.run_id, [Point(name, value, step) for name, value in values.items()])
        for step in rungs:
            path = self.folder.grid(step / 1000)
            if path.is_file():
                self.tracker.image(self.run_id, "samples", step, path)

    def progress(self, event: Progress) -> None:
        """Remember a point of the curves; it is logged with the next flush."""
        row = {"kimg": event.kimg, **event.curve, "images_per_s": event.images_per_s}
        self.history.curve.append(row)
        self._queue(row)

    def save(self, event: Snapshot) -> None:
        """Write a checkpoint and log what is pending.

        Raises:
            OSError: the disk is full; the older checkpoints are untouched.
        """
        self.fence()
        path = self.folder.checkpoint(event.step)
        save_checkpoint(path, {**event.state, "extra": self.history.to_json()})
        for old in self._checkpoints()[_KEEP:]:
            old.unlink(missing_ok=True)
        self._to_share(path, keep=_KEEP)
        self.flush()
        self.saved_at = time.monotonic()

    def due(self, every_s: float) -> bool:
        """Whether the last checkpoint is older than ``every_s`` seconds."""
        return time.monotonic() - self.saved_at > every_s

    def rung(self, kimg: float, name: str, value: float) -> None:
        """Remember a rung's score and log it, with what is pending."""
        self.fence()
        step = round(kimg * 1000)
        self.history.rungs[step] = value
        self.pending.append(Point(name, value, step))
        self._log_pending()

    def watch(self, kimg: float, name: str, value: float) -> None:
        """Remember a measure of the samples' diversity, if it is finite; it is logged with the next rung or flush."""
        if math.isfinite(value):
            step = round(kimg * 1000)
            self.history.watched.setdefault(step, {})[name] = round(value, 4)
            self.pending.append(Point(name, round(value, 4), step))

    def grid(self, event: Snapshot, kimg: float, *, final: bool, n: int = GRID_IMAGES, seed: int | None = None) -> None:
        """Images from the same z at every mark (or of a seed), as a PNG in the folder and in the tracker.

        How far they are from each other, as a share of real images' distance, is watched.
        """
        images = generate(event.generator, self.hp, n, GRID_SEED if seed is None else seed, self.device)
        path = self.folder.grid(kimg)
        save_png(path, image_grid(images, columns=min(8, math.ceil(math.sqrt(n)))))
        self.tracker.image(self.run_id, "samples", round(kimg * 1000), path)
        if self.real_distance:
            self.watch(kimg, "sample_distance", mean_distance(images) / self.real_distance)
        if final:
            # MLflow opens a series of images at step 0: this one shows its picture at once.
            self.tracker.image(self.run_id, "final_samples", 0, path)

    def publish(self, event: Snapshot) -> None:
        """Write the generator's weights for use, with the configuration next to them, and log both."""
        self.fence()
        export_generator(self.folder.path, event.generator, self.hp)
        for path in (self.folder.weights, self.folder.hparams):
            self.tracker.artifact(self.run_id, path, "model")

    def flush(self) -> None:
        """Log the pending points and write the curve."""
        self._log_pending()
        atomic.write_text(self.folder.curve, json.dumps(self.history.curve))

    def end(self, state: str, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Close the run; only the newest checkpoint of a finished training is kept."""
        self.ended = True
        self.flush()
        self.tracker.artifact(self.run_id, self.folder.curve)
        checkpoints = self._checkpoints()
        for newest in checkpoints[:1]:
            self.tracker.artifact(self.run_id, newest, "checkpoint")
        self.tracker.end(self.run_id, state, scores=scores, tags=tags)
        if state in ("COMPLETE", "PRUNED"):
            for old in checkpoints[1:]:
                old.unlink(missing_ok=True)
        if state == "PRUNED":
            self.hand_over()

    def hand_over(self) -> None:
        """Copy what was made to the share. Of a finished training before the database has its score: none is lost.

        Raises:
            OSError: the curve cannot be written on this machine.
        """
        if self.share is None:
            return
        self.flush()
        for result in self.folder.results():
            self._to_share(result, keep=0)

    def _log_pending(self) -> None:
        self.tracker.log(self.run_id, self.pending)
        self.pending.clear()

    def _queue(self, row: Mapping[str, float]) -> None:
        step = round(row["kimg"] * 1000)
        # kimg is the step already; as a metric it would be the first that MLflow's comparisons offer.
        self.pending += [Point(name, value, step) for name, value in row.items() if name != "kimg"]

    def _checkpoints(self) -> list[Path]:
        """Of this attempt and of those that it continues, newest first."""
        return [path for path in newest_first((*self.earlier, self.folder)) if path not in self.foreign]

    def _to_share(self, path: Path, *, keep: int) -> None:
        if self.share is None:
            return
        try:
            self.share.put(path, keep=keep)
        except Exception as error:
            # This machine has the checkpoint; only another one would have to begin earlier.
            self.say(f"{self.share} cannot be written ({type(error).__name__}); training continues")


def save_png(path: Path, pixels_HWC: np.ndarray) -> None:
    """Write a uint8 image atomically."""
    from io import BytesIO

    buffer = BytesIO()
    # "optimize" takes up to 0.2 s for a sample grid, and the file is no smaller.
    Image.fromarray(pixels_HWC).save(buffer, "PNG", compress_level=3)
    atomic.write_bytes(path, buffer.getvalue())
