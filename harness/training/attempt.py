"""One attempt at a training on disk: its folder, the record of its run, and the loop around ``gan.train``."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from harness import atomic
from harness.errors import HarnessError
from harness.gan.hparams import HParams, canonical_json, digest
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress, train
from harness.home import seconds_from_environment
from harness.machine.processes import compiled_graphs, cuda_graphs
from harness.scoring.diversity import mean_distance
from harness.scoring.fidelity import Scores
from harness.scoring.sampling import GRID_IMAGES, GRID_SEED, generate, image_grid, save_png
from harness.training.checkpoint import History, inherit, newest_checkpoint, newest_first, save_checkpoint
from harness.training.export import publish
from harness.training.run_folder import RunEnd, RunFolder, RunRecord, named_marks
from harness.training.share import Share

_KEEP = 2


class Degenerate(HarnessError):
    """The configuration has no generator that can be scored: no network, or constant or non-finite images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint was written. ``mark`` is the budget's mark (kimg) that it was written for, if any."""

    kimg: float
    mark: float | None


@dataclass(slots=True)
class Attempt:
    """A training's files in one folder: everything that must survive it."""

    folder: RunFolder  # of this attempt alone: after it was declared dead it cannot overwrite its successor's files
    hp: HParams
    seed: int
    record: RunRecord
    device: torch.device
    _: KW_ONLY
    rung_metric: str = ""
    earlier: Sequence[RunFolder] = ()  # of attempts that it continues, oldest first
    fence: Callable[[], None] = lambda: None  # raises if this attempt was declared dead
    share: Share | None = None
    say: Callable[[str], None] = lambda text: None
    real_distance: float = 0.0  # from scoring.diversity.real_distance; 0 if unknown
    state: dict[str, Any] | None = field(init=False, default=None)  # of the checkpoint that it continues
    history: History = field(init=False)
    foreign: frozenset[Path] = field(init=False, default=frozenset())  # checkpoints of other trainings
    saved_at: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.earlier = [before for before in self.earlier if before.path != self.folder.path]
        self.history = History(digest([self.hp.to_dict(), self.seed, self.record.info.dataset_digest]))

    def open(self) -> Self:
        """Make the folder, find the checkpoint to continue from, and write the run's record."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        inherit(self.folder, self.earlier, self.share, self.say)
        folders = (*self.earlier, self.folder)
        resumed = newest_checkpoint(folders, self.history.identity, self.device, self.say)
        self.state, self.history, self.foreign = resumed
        atomic.write_text(self.folder.hparams, canonical_json(self.hp.to_dict()) + "\n")
        if self.state:
            self.flush()
        self._write_record()
        return self

    @property
    def resumed_kimg(self) -> float:
        return self.state["step"] * self.hp.images_per_step / 1000 if self.state else 0.0

    @property
    def record_path(self) -> Path:
        return self.folder.record(self.record.kimg)

    def save(self, event: Snapshot) -> None:
        """Write a checkpoint and the curve; OSError if the disk is full: older checkpoints are untouched then."""
        self.fence()
        path = self.folder.checkpoint(event.step)
        save_checkpoint(path, {**event.state, "extra": self.history.to_json()})
        self._remove_checkpoints(_KEEP)
        self._to_share(path, keep=_KEEP)
        self.flush()
        self.saved_at = time.monotonic()

    def rung(self, kimg: float, value: float) -> None:
        """Record a rung's score, and measures of diversity."""
        self.fence()
        self.history.rungs[round(kimg * 1000)] = value
        self._write_record()

    def watch(self, kimg: float, name: str, value: float) -> None:
        """Remember a finite measure of the samples' diversity; the next rung or the end records it."""
        if math.isfinite(value):
            self.history.watched.setdefault(round(kimg * 1000), {})[name] = round(value, 4)

    def grid(self, event: Snapshot, kimg: float, *, n: int = GRID_IMAGES, fresh: bool = False) -> None:
        """Draw a grid of samples, of the same z at every mark, and watch their distance.

        If the grid is of a ``fresh`` z, a second picture has the same z.
        """
        images = generate(event.generator, self.hp, n, event.step if fresh else GRID_SEED, self.device)
        save_png(self.folder.grid(kimg), image_grid(images, columns=columns(n)))
        if fresh:
            same = generate(event.generator, self.hp, GRID_IMAGES, GRID_SEED, self.device)
            save_png(self.folder.frame(kimg), image_grid(same))
        if self.real_distance and kimg:
            self.watch(kimg, "sample_distance", mean_distance(images) / self.real_distance)

    def publish(self, event: Snapshot) -> None:
        self.fence()
        publish(self.folder.path, event.generator, event.state["discriminator"], self.hp)

    def flush(self) -> None:
        """Write the curve."""
        atomic.write_text(self.folder.curve, json.dumps(self.history.curve))

    def end(self, state: str, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Record the end; of a finished training only the newest checkpoint is kept."""
        self.flush()
        self._write_record(RunEnd(state=state, scores=scores, tags=tags, kimg=self.history.kimg))
        if state in ("COMPLETE", "PRUNED"):
            self._remove_checkpoints(1)
        if state in ("PRUNED", "WAITING"):
            self.hand_over()

    def hand_over(self) -> None:
        """Copy the results to the share; before the database has a final score, so that no scored training is lost."""
        if self.share is None:
            return
        self.flush()
        for result in self.folder.results():
            self._to_share(result, keep=0)

    def _write_record(self, end: RunEnd | None = None) -> None:
        marks = named_marks(self.rung_metric, self.history.rungs, self.history.watched)
        self.record = dataclasses.replace(self.record, marks=marks, end=end)
        self.record.write(self.record_path)

    def _remove_checkpoints(self, keep: int) -> None:
        """Remove all but the newest checkpoints of this attempt and those that it continues."""
        own = [path for path in newest_first((*self.earlier, self.folder)) if path not in self.foreign]
        for old in own[keep:]:
            old.unlink(missing_ok=True)

    def _to_share(self, path: Path, *, keep: int) -> None:
        if self.share is None:
            return
        try:
            self.share.put(path, keep=keep)
        except Exception as error:
            # This machine has the checkpoint; another machine would continue from an earlier one.
            self.say(f"{self.share} cannot be written ({type(error).__name__}); training continues")


def checkpoint_every_s() -> float:
    """Seconds between checkpoints besides those at marks: ``HARNESS_CHECKPOINT_S``, 60 by default."""
    return seconds_from_environment("HARNESS_CHECKPOINT_S", 60.0)


def train_on_disk(
    attempt: Attempt,
    images_NHWC: Tensor,
    *,
    budget: Budget,
    stop: Callable[[], bool],
    checkpoint_s: float,
    grid_images: int = GRID_IMAGES,
    fresh_grids: bool = False,
) -> Iterator[Progress | Saved | Snapshot]:
    """Train from an attempt's checkpoint to the end of the budget; the caller scores, prunes, publishes or stops.

    ``stop`` is called after every Progress; if it is true, a checkpoint follows, and the caller stops iterating. The
    first grid is the untrained generator's; ``fresh_grids`` have a new z at each mark. Yields Progress; Saved after
    each checkpoint; then, at marks, the Snapshot whose grid was drawn. Raises OSError if the disk is full, Fenced if
    the attempt was declared dead.
    """
    for event in train(
        attempt.hp,
        images_NHWC,
        budget=dataclasses.replace(budget, snapshots_kimg=(0.0, *budget.snapshots_kimg)),
        seed=attempt.seed,
        device=attempt.device,
        resume=attempt.state,
        snapshot_now=lambda: stop() or time.monotonic() - attempt.saved_at > checkpoint_s,
        graph=cuda_graphs(),
        compiles=compiled_graphs(),
    ):
        if isinstance(event, Progress):
            row = {"kimg": event.kimg, **event.curve, "images_per_s": event.images_per_s}
            attempt.history.curve.append(row)  # written with the next checkpoint
            yield event
            continue
        if event.mark != 0:
            attempt.save(event)
            yield Saved(kimg=event.kimg, mark=event.mark)
        if event.mark is not None:
            attempt.grid(event, event.mark, n=grid_images, fresh=fresh_grids)
        if event.mark:
            yield event


def columns(n: int) -> int:
    """Columns of a grid of n images."""
    return min(8, math.ceil(math.sqrt(n)))


def checked(scores: Scores) -> Scores:
    """The scores if they are valid; else raise Degenerate with the reason."""
    if scores.reason:
        raise Degenerate(scores.reason)
    return scores
