"""The folder of one run, of a trial's attempt or of a single training: where each of its files is."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Names and finds the files of a run; creates nothing.

    Checkpoints, curve and grids are written while it trains, weights when it has finished. ``summary`` is a single
    training's (a trial has its row in the database instead), ``audit`` and ``nearest`` are of `harness audit`.
    """

    path: Path

    @property
    def curve(self) -> Path:
        """Rows of the losses and gradients, as JSON. Copied to a share last: with it a folder there is whole."""
        return self.path / "curve.json"

    @property
    def weights(self) -> Path:
        """Of the generator."""
        return self.path / "generator.safetensors"

    @property
    def discriminator(self) -> Path:
        return self.path / "discriminator.safetensors"

    @property
    def hparams(self) -> Path:
        return self.path / "hparams.json"

    @property
    def summary(self) -> Path:
        return self.path / "training.json"

    @property
    def audit(self) -> Path:
        return self.path / "audit.json"

    @property
    def nearest(self) -> Path:
        """Samples next to their nearest training images."""
        return self.path / "nearest.png"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    def record(self, kimg: float) -> Path:
        """What the run to ``kimg`` is of, and how it ended: a single training may be continued to more."""
        return self.path / f"run-{kimg:.6g}.json"

    def records(self) -> list[Path]:
        return sorted(self.path.glob("run-*.json"))

    def grid(self, kimg: float) -> Path:
        """The samples drawn at ``kimg``; its name counts images shown."""
        return self.path / f"grid-{round(kimg * 1000):09d}.png"

    def grids(self) -> list[Path]:
        """All sample grids, the earliest first."""
        return sorted(self.path.glob("grid-*.png"))

    def checkpoint(self, step: int) -> Path:
        return self.path / f"snapshot-{step:09d}.pt"

    def checkpoints(self) -> list[Path]:
        """All checkpoints that were not found damaged, the newest first."""
        return sorted(self.path.glob("snapshot-*.pt"), reverse=True)

    def results(self) -> list[Path]:
        """What other machines need of a finished run, in the order in which it is copied."""
        made = [path for path in self.path.iterdir() if path.suffix in (".png", ".json", ".safetensors")]
        made = [path for path in made if path not in self.records()]
        return sorted(made, key=lambda path: self.order(path.name))

    def order(self, name: str) -> tuple[bool, str]:
        """Sorts the folder's file names as they are copied: the curve last."""
        return name == self.curve.name, name

    def read_curve(self) -> list[dict[str, float]]:
        """The rows of the curve; none where it was not written yet, or was damaged."""
        return list(_read(self.curve, list) or [])

    def read_audit(self) -> dict[str, Any] | None:
        """What `harness audit` found; None where it was not run, or was damaged."""
        found: dict[str, Any] | None = _read(self.audit, dict)
        return found

    def read_summary(self) -> dict[str, Any]:
        """Settings and scores of a finished single training.

        Raises:
            OSError: it is not finished.
            ValueError: the file is damaged.
        """
        summary: dict[str, Any] = json.loads(self.summary.read_text())
        return summary


def grid_kimg(path: Path) -> float:
    """How far a training was (kimg) when a sample grid was drawn."""
    return int(path.stem.removeprefix("grid-")) / 1000


def set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint, so that it is neither used nor lost.

    Raises:
        OSError: it cannot be renamed.
    """
    checkpoint.rename(checkpoint.with_suffix(".damaged"))


def newest_first(folders: Collection[RunFolder]) -> list[Path]:
    """The checkpoints of several folders; of two of the same step, that of the later folder first."""
    found = {path for folder in folders for path in folder.checkpoints()}
    return sorted(found, key=lambda path: (path.name, path.parent.name), reverse=True)


def _read(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, kind) else None
