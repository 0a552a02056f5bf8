"""One attempt at a training: its folder, what its checkpoints keep, and the record of its run."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
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
from harness.training.checkpoint import publish, save_checkpoint
from harness.training.history import History
from harness.training.record import RunEnd, RunRecord
from harness.training.resume import inherit, newest_checkpoint
from harness.training.run_folder import RunFolder, newest_first
from harness.training.share import Share

_KEEP = 2


@dataclass(slots=True)
class Attempt:
    """Keeps everything of a training that must survive it, in files of one folder.

    Attributes:
        folder: of this attempt alone, so that one that was declared dead can overwrite nothing of its successor's.
        hp, seed: the configuration, and the seed of weights, data order and noise.
        record: of its run, as the folder has it.
        device: where it is trained.
        rung_metric: name of the rung scores.
        earlier: folders of the attempts that it continues, oldest first.
        fence: called before anything is published; raises where this attempt was declared dead.
        share: where workers of other machines find the checkpoints.
        say: told about damaged checkpoints, and about a share that cannot be reached.
        real_distance: between real images, as of :func:`harness.scoring.diversity.mean_distance`; 0 if unknown.
        state: of the checkpoint that it continues; None where it begins.
        history: what goes into the next checkpoint.
        foreign: checkpoints in the folders that are of another training.
    """

    folder: RunFolder
    hp: HParams
    seed: int
    record: RunRecord
    device: torch.device
    _: KW_ONLY
    rung_metric: str = ""
    earlier: Sequence[RunFolder] = ()
    fence: Callable[[], None] = lambda: None
    share: Share | None = None
    say: Callable[[str], None] = lambda text: None
    real_distance: float = 0.0
    state: dict[str, Any] | None = field(init=False, default=None)
    history: History = field(init=False)
    foreign: frozenset[Path] = field(init=False, default=frozenset())
    saved_at: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.earlier = [before for before in self.earlier if before != self.folder]
        self.history = History(digest([self.hp.to_dict(), self.seed, self.record.info.dataset_digest]))

    def open(self) -> Self:
        """Make the folder, find the checkpoint to continue from, and write the run's record."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        inherit(self.folder, self.earlier, self.share, self.say)
        folders = (*self.earlier, self.folder)
        found = newest_checkpoint(folders, self.history.identity, self.device, self.say)
        self.state, self.history, self.foreign = found
        atomic.write_text(self.folder.hparams, canonical_json(self.hp.to_dict()) + "\n")
        if self.state:
            self.flush()
        self._write_record()
        return self

    @property
    def resumed_kimg(self) -> float:
        """Where it began."""
        return self.state["step"] * self.hp.images_per_step / 1000 if self.state else 0.0

    @property
    def record_path(self) -> Path:
        return self.folder.record(self.record.kimg)

    def progress(self, event: Progress) -> None:
        """Remember a point of the curves; it is written with the next checkpoint."""
        self.history.curve.append({"kimg": event.kimg, **event.curve, "images_per_s": event.images_per_s})

    def save(self, event: Snapshot) -> None:
        """Write a checkpoint and the curve.

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

    def rung(self, kimg: float, value: float) -> None:
        """Record a rung's score, and what was watched."""
        self.fence()
        self.history.rungs[round(kimg * 1000)] = value
        self._write_record()

    def watch(self, kimg: float, name: str, value: float) -> None:
        """Remember a measure of the samples' diversity, if it is finite; the next rung or the end records it."""
        if math.isfinite(value):
            self.history.watched.setdefault(round(kimg * 1000), {})[name] = round(value, 4)

    def grid(self, event: Snapshot, kimg: float, *, n: int = GRID_IMAGES, seed: int | None = None) -> None:
        """Draw images from the same z at every mark (or of a seed), as a PNG.

        How far they are from each other, as a share of real images' distance, is watched.
        """
        images = generate(event.generator, self.hp, n, GRID_SEED if seed is None else seed, self.device)
        save_png(self.folder.grid(kimg), image_grid(images, columns=min(8, math.ceil(math.sqrt(n)))))
        if self.real_distance:
            self.watch(kimg, "sample_distance", mean_distance(images) / self.real_distance)

    def publish(self, event: Snapshot) -> None:
        """Write the weights of both networks for use, with the configuration next to them."""
        self.fence()
        publish(self.folder.path, event.generator, event.state["discriminator"], self.hp)

    def flush(self) -> None:
        """Write the curve."""
        atomic.write_text(self.folder.curve, json.dumps(self.history.curve))

    def end(self, state: str, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Record how it ended; only the newest checkpoint of a finished training is kept."""
        self.flush()
        self._write_record(RunEnd(state=state, scores=scores, tags=tags, kimg=self.history.kimg))
        if state in ("COMPLETE", "PRUNED"):
            for old in self._checkpoints()[1:]:
                old.unlink(missing_ok=True)
        if state in ("PRUNED", "WAITING"):
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

    def _write_record(self, end: RunEnd | None = None) -> None:
        marks = {step: {self.rung_metric: score} for step, score in self.history.rungs.items()}
        for step, values in self.history.watched.items():
            marks[step] = {**marks.get(step, {}), **values}
        self.record = dataclasses.replace(self.record, marks=marks, end=end)
        self.record.write(self.record_path)

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
