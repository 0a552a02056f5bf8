"""One attempt at a training: its folder, checkpoints, curve, and its run in the tracker."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness import atomic
from harness.errors import CheckpointError
from harness.gan.hparams import HParams, canonical_json, digest
from harness.gan.run import Snapshot
from harness.gan.trainer import Progress
from harness.scoring.diversity import mean_distance
from harness.scoring.sampling import GRID_IMAGES, GRID_SEED, generate, image_grid
from harness.tracking.tracker import Point, RunInfo, Tracker
from harness.training.checkpoint import HPARAMS_FILE, WEIGHTS_FILE, export_generator, load_checkpoint, save_checkpoint
from harness.training.share import CURVE_FILE, Share, in_order

_KEEP = 2


class Attempt:
    """Keeps everything of a training that must survive it.

    The curve and the rung scores are part of the checkpoint, so that what was logged and what was trained never
    disagree after a crash.

    Args:
        folder: of this attempt alone, so that one that was declared dead can overwrite nothing of its successor's.
        hp: the configuration.
        seed: of the training.
        tracker: where to log.
        info: the run in the tracker.
        device: where the state is restored to.
        earlier: folders of the attempts that this one continues, oldest first.
        fence: called before anything is published; raises where this attempt was declared dead.
        share: where workers of other machines find the checkpoints.
        say: told about damaged checkpoints, and about a share that cannot be reached.
        real_distance: between real images, as of :func:`harness.scoring.diversity.mean_distance`; 0 if unknown.
    """

    def __init__(
        self,
        folder: Path,
        hp: HParams,
        seed: int,
        tracker: Tracker,
        info: RunInfo,
        device: torch.device,
        *,
        earlier: Sequence[Path] = (),
        fence: Callable[[], None] = lambda: None,
        share: Share | None = None,
        say: Callable[[str], None] = lambda text: None,
        real_distance: float = 0.0,
    ) -> None:
        self.folder, self.hp, self.tracker, self.device = folder, hp, tracker, device
        self.fence, self.share, self.say, self.real_distance = fence, share, say, real_distance
        self._earlier = [path for path in earlier if path != folder]
        # A checkpoint is continued only by the training that it is of: configuration, seed and images.
        self.identity = digest([hp.to_dict(), seed, info.dataset_digest])
        self.curve: list[dict[str, float]] = []
        self.rungs: dict[int, float] = {}
        self.watched: dict[int, dict[str, float]] = {}
        self.resumed_kimg = 0.0
        self.ended = False
        self._foreign: set[Path] = set()
        self._adopt()
        self.state = self._newest()
        self.run_id = tracker.start(info)
        atomic.write_text(folder / HPARAMS_FILE, canonical_json(hp.to_dict()) + "\n")
        tracker.artifact(self.run_id, folder / HPARAMS_FILE)
        self._pending: list[Point] = []
        self._saved = time.monotonic()
        if self.state is not None:
            extra = json.loads(self.state.pop("extra"))
            self.curve = extra["curve"]
            self.rungs = {int(step): value for step, value in extra["rungs"].items()}
            self.watched = {int(step): values for step, values in extra.get("watched", {}).items()}
            self.resumed_kimg = self.state["step"] * hp.images_per_step / 1000
            for row in self.curve:
                self._queue(row)

    def log_again(self, rung_metric: str) -> None:
        """Log what the attempt before this one had reached: its rung scores and sample grids."""
        self.tracker.log(self.run_id, [Point(rung_metric, value, step) for step, value in self.rungs.items()])
        for step, values in self.watched.items():
            self.tracker.log(self.run_id, [Point(name, value, step) for name, value in values.items()])
        for step in self.rungs:
            path = self.folder / f"grid-{step:09d}.png"
            if path.is_file():
                self.tracker.image(self.run_id, "samples", step, path)

    def progress(self, event: Progress) -> None:
        """Remember a point of the curves; it is logged with the next flush."""
        row = {"kimg": event.kimg, **event.curve, "images_per_s": event.images_per_s}
        self.curve.append(row)
        self._queue(row)

    def save(self, event: Snapshot) -> None:
        """Write a checkpoint and log what is pending.

        Raises:
            OSError: the disk is full; the older checkpoints are untouched.
        """
        self.fence()
        kept = {"curve": self.curve, "rungs": self.rungs, "watched": self.watched, "identity": self.identity}
        path = self.folder / f"snapshot-{event.step:09d}.pt"
        save_checkpoint(path, {**event.state, "extra": json.dumps(kept)})
        for old in self._snapshots()[_KEEP:]:
            old.unlink(missing_ok=True)
        self._to_share(path, keep=_KEEP)
        self.flush()
        self._saved = time.monotonic()

    def trained_s(self, until_kimg: float = math.inf) -> float:
        """Seconds of training up to so many kimg, over all attempts, without scoring and checkpoints.

        Rates are of windows of the curve; a mark within a window, or after the last one, counts at the nearest rate.
        """
        seconds = reached = 0.0
        rate = math.inf
        for row in self.curve:
            rate = row["images_per_s"]
            if row["kimg"] > until_kimg:
                break
            seconds += 1000 * (row["kimg"] - reached) / rate
            reached = row["kimg"]
        if math.isfinite(until_kimg):
            seconds += 1000 * max(0.0, until_kimg - reached) / rate
        return seconds

    def due(self, every_s: float) -> bool:
        """Whether the last checkpoint is older than ``every_s`` seconds."""
        return time.monotonic() - self._saved > every_s

    def rung(self, kimg: float, name: str, value: float) -> None:
        """Remember a rung's score and log it, with what is pending."""
        self.fence()
        step = round(kimg * 1000)
        self.rungs[step] = value
        self._pending.append(Point(name, value, step))
        self._log_pending()

    def watch(self, kimg: float, name: str, value: float) -> None:
        """Remember a sign of the samples' diversity, where it is a number; it is logged with the next rung or flush."""
        if math.isfinite(value):
            step = round(kimg * 1000)
            self.watched.setdefault(step, {})[name] = round(value, 4)
            self._pending.append(Point(name, round(value, 4), step))

    def grid(self, event: Snapshot, kimg: float, *, final: bool, n: int = GRID_IMAGES, seed: int | None = None) -> None:
        """Images from the same z at every rung (or of a seed), as a PNG in the folder and in the tracker.

        How far they are from each other, as a share of real images' distance, is watched.
        """
        images = generate(event.generator, self.hp, n, GRID_SEED if seed is None else seed, self.device)
        pixels = image_grid(images, columns=min(8, math.ceil(math.sqrt(n))))
        path = self.folder / f"grid-{round(kimg * 1000):09d}.png"
        save_png(path, pixels)
        self.tracker.image(self.run_id, "samples", round(kimg * 1000), path)
        if self.real_distance:
            self.watch(kimg, "sample_distance", mean_distance(images) / self.real_distance)
        if final:
            # MLflow opens a series of images at step 0: this one shows its picture at once.
            self.tracker.image(self.run_id, "final_samples", 0, path)

    def publish(self, event: Snapshot) -> None:
        """Write the generator's weights for use, with the configuration beside them, and log both."""
        self.fence()
        export_generator(self.folder, event.generator, self.hp)
        for name in (WEIGHTS_FILE, HPARAMS_FILE):
            self.tracker.artifact(self.run_id, self.folder / name, "model")

    def flush(self) -> None:
        """Log the pending points and write the curve beside the checkpoints."""
        self._log_pending()
        atomic.write_text(self.folder / CURVE_FILE, json.dumps(self.curve))

    def end(self, state: str, scores: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Close the run; only the newest checkpoint of a finished training is kept."""
        self.ended = True
        self.flush()
        self.tracker.artifact(self.run_id, self.folder / CURVE_FILE)
        for newest in self._snapshots()[:1]:
            self.tracker.artifact(self.run_id, newest, "checkpoint")
        self.tracker.end(self.run_id, state, scores=scores, tags=tags)
        if state in ("COMPLETE", "PRUNED"):
            for old in self._snapshots()[1:]:
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
        for result in sorted(self.folder.iterdir(), key=lambda path: in_order(path.name)):
            if result.suffix in (".png", ".json", ".safetensors"):
                self._to_share(result, keep=0)

    def _log_pending(self) -> None:
        self.tracker.log(self.run_id, self._pending)
        self._pending.clear()

    def _queue(self, row: Mapping[str, float]) -> None:
        step = round(row["kimg"] * 1000)
        # kimg is the step already; as a metric it would be the first that MLflow's comparisons offer.
        self._pending += [Point(name, value, step) for name, value in row.items() if name != "kimg"]

    def _snapshots(self) -> list[Path]:
        """Of this attempt and of those that it continues, newest first."""
        found = {path for folder in (*self._earlier, self.folder) for path in folder.glob("snapshot-*.pt")}
        return sorted(found - self._foreign, key=lambda path: (path.name, path.parent.name), reverse=True)

    def _newest(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole and of this training; damaged ones are set aside, others' left alone."""
        for path in self._snapshots():
            try:
                state = load_checkpoint(path, self.device)
                belongs = json.loads(state["extra"])["identity"] == self.identity
            except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
                with suppress(OSError):
                    path.rename(path.with_suffix(".damaged"))
                self.say(f"{path.name} is not usable ({str(error).splitlines()[0]}); set aside, an older one is used")
                continue
            if belongs:
                return state
            self._foreign.add(path)
            self.say(f"{path.name} is of another configuration, other images or another version; not used")
        return None

    def _adopt(self) -> None:
        """Have the sample grids of the earlier attempts, and their checkpoints where another machine made them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for folder in self._earlier:
            if self.share:
                try:
                    self.share.fetch(folder)
                except Exception as error:
                    self.say(
                        f"{self.share} cannot be read ({type(error).__name__}); checkpoints of this machine are used"
                    )
            atomic.remove_torn(folder)  # its writer is dead
            for grid in folder.glob("grid-*.png"):
                if not (self.folder / grid.name).exists():
                    atomic.write_bytes(self.folder / grid.name, grid.read_bytes())

    def _to_share(self, path: Path, *, keep: int) -> None:
        if self.share is None:
            return
        try:
            self.share.put(path, keep=keep)
        except Exception as error:
            # This machine has the checkpoint; only another one would have to begin earlier.
            self.say(f"{self.share} cannot be written ({type(error).__name__}); training goes on")


def save_png(path: Path, pixels_HWC: np.ndarray) -> None:
    """Write a uint8 image atomically."""
    from io import BytesIO

    buffer = BytesIO()
    # "optimize" takes up to 0.2 s for a sample grid, and the file is no smaller.
    Image.fromarray(pixels_HWC).save(buffer, "PNG", compress_level=3)
    atomic.write_bytes(path, buffer.getvalue())
