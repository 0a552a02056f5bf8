"""Checkpoints: checked files, a training's history, and the checkpoint that it continues from."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from harness import atomic
from harness.errors import CheckpointError, first_line
from harness.training.run_folder import RunFolder
from harness.training.share import Share

_MAGIC = b"dcgan-harness checkpoint 1\n"
_KEPT_ON_CPU = ("epoch_rng", "noise_rng", "flip_rng")  # for the trainer to place


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them atomically: a header with the sha256, then the payload."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    atomic.write_bytes(path, _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a file of :func:`save_checkpoint`; its sha256 is checked before anything is unpickled."""
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise CheckpointError(f"{path} is not a checkpoint of this harness")
    expected, _, payload = data.removeprefix(_MAGIC).partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != expected:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in its header")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception:  # its text recommends unsafe loading
        raise CheckpointError(f"{path} cannot be loaded: it holds more than plain values and tensors") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not a checkpoint of this harness")
    moved = {key for key, value in state.items() if isinstance(value, torch.Tensor) and key not in _KEPT_ON_CPU}
    return {key: value.to(device) if key in moved else value for key, value in state.items()}


@dataclass(slots=True)
class History:
    """Curve and scores of a training; each checkpoint has a copy, so that both agree after a crash.

    ``identity`` depends on configuration, seed and images. ``curve`` holds means over windows of steps; rung scores and
    measures of the samples' diversity are by images shown.
    """

    identity: str
    curve: list[dict[str, float]] = field(default_factory=list)
    rungs: dict[int, float] = field(default_factory=dict)
    watched: dict[int, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a history of :meth:`to_json`; ValueError, KeyError or TypeError if it is something else."""
        kept = json.loads(text)
        return cls(
            identity=kept["identity"],
            curve=list(kept["curve"]),
            rungs={int(step): value for step, value in kept["rungs"].items()},
            watched={int(step): values for step, values in kept.get("watched", {}).items()},
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def kimg(self) -> float:
        return self.curve[-1]["kimg"] if self.curve else 0.0

    def trained_s(self, until_kimg: float = math.inf) -> float:
        """Seconds of training up to ``until_kimg``, over all attempts, without scoring and checkpoints.

        Rates are means over the curve's windows; a mark within a window, or after the last, uses the nearest rate.
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


def newest_first(folders: Collection[RunFolder]) -> list[Path]:
    """The checkpoints of several folders; for equal steps, that of the later folder first."""
    paths = {path for folder in folders for path in folder.checkpoints()}
    return sorted(paths, key=lambda path: (path.name, path.parent.name), reverse=True)


def newest_checkpoint(
    folders: Sequence[RunFolder], identity: str, device: torch.device, say: Callable[[str], None]
) -> tuple[dict[str, Any] | None, History, frozenset[Path]]:
    """(state or None, history, other trainings' checkpoints), from the newest one; damaged ones are set aside."""
    foreign: set[Path] = set()
    for path in newest_first(folders):
        try:
            state = load_checkpoint(path, device)
            history = History.from_json(state.pop("extra"))
        except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
            with suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
            say(f"{path.name} is not usable ({first_line(error)}); set aside, using an older one")
            continue
        if history.identity == identity:
            return state, history, frozenset(foreign)
        foreign.add(path)
        say(f"{path.name} is of another configuration, seed, images or version; not used")
    return None, History(identity), frozenset(foreign)


def inherit(folder: RunFolder, earlier: Sequence[RunFolder], share: Share | None, say: Callable[[str], None]) -> None:
    """Fetch checkpoints of other machines from the share, and copy the earlier attempts' grids.

    The share may also have this attempt, if another machine trained it to the rung where it was paused.
    """
    if share:
        try:
            for each in (*earlier, folder):
                share.fetch(each.path)
        except Exception as error:
            say(f"{share} cannot be read ({type(error).__name__}); using checkpoints of this machine")
    for before in earlier:
        atomic.remove_torn(before.path)  # its writer is dead
        for grid in before.grids():
            if not (folder.path / grid.name).exists():
                atomic.write_bytes(folder.path / grid.name, grid.read_bytes())
