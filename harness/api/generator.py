"""Trained generators: loading them, and sampling images from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness import atomic
from harness.data.own import numpy_file
from harness.errors import CheckpointError, DataError, NotFoundError, UsageError
from harness.findings.confirmation import best_training
from harness.gan.hparams import HParams
from harness.home import Home
from harness.scoring import sampling
from harness.spec.files import load_best
from harness.store.records import StudyRecord, TrialRecord
from harness.store.studies import find_confirmation, started_study, study_to_record
from harness.text import did_you_mean
from harness.training.export import import_generator
from harness.training.run_folder import RunFolder
from harness.training.share import bring_results


class Generator:
    """A trained generator with its configuration.

    Attributes:
        network: a ``torch.nn.Module``, ``z`` of shape (N, z_dim) to images of shape (N, C, H, W) in [-1, 1].
        hparams: what it was trained with.

    >>> import harness
    >>> generator = harness.load_generator("reports/tiny/best.toml")
    >>> images = generator.sample(4, seed=0)
    >>> images.shape, images.dtype
    ((4, 16, 16, 1), dtype('uint8'))
    >>> z = generator.latents(4, seed=0)
    >>> bool((generator(z) == images).all())
    True
    """

    def __init__(self, network: nn.Module, hparams: HParams) -> None:
        self.network, self.hparams = network, hparams

    def __repr__(self) -> str:
        hp = self.hparams
        return f"Generator(z_dim={hp.z_dim}, {hp.latent} z, images {hp.image_size}x{hp.image_size}x{hp.channels})"

    def latents(self, n: int, *, seed: int = 0) -> np.ndarray:
        """n latents of shape (n, z_dim), float32, from the law that the generator was trained with."""
        latents: np.ndarray = sampling.scoring_noise(n, self.hparams, seed).numpy()
        return latents

    def walk(self, z: np.ndarray, steps: int) -> np.ndarray:
        """Latents from each z to the next, ``steps`` each with both ends included: shape ((N - 1) * steps, z_dim).

        Spherical for normal z, because points on a straight line would be closer to 0 than z ever is; else straight.

        Args:
            z: of shape (N, z_dim), two or more.
            steps: two or more.

        Raises:
            UsageError: there are fewer.

        >>> import harness
        >>> generator = harness.load_generator("reports/tiny/best.toml")
        >>> path = generator.walk(generator.latents(3, seed=0), 5)
        >>> generator(path).shape
        (10, 16, 16, 1)
        """
        if len(z) < 2 or steps < 2:
            raise UsageError(f"a walk needs two or more z and steps; got {len(z)} and {steps}", "Use more of them.")
        path: np.ndarray = sampling.walk(torch.as_tensor(z, dtype=torch.float32), steps, self.hparams.latent).numpy()
        return path

    def __call__(self, z: np.ndarray | Tensor) -> np.ndarray:
        """Images of latents z of shape (N, z_dim), as uint8 of shape (N, H, W, C)."""
        return self._pixels(self._images(z))

    def sample(self, n: int, *, seed: int = 0) -> np.ndarray:
        """n images as uint8 of shape (n, H, W, C); the same seed gives the same images.

        With the seed of a study's scoring protocol these are the images that were scored.
        """
        return self(self.latents(n, seed=seed))

    def save(
        self,
        n: int | np.ndarray,
        *,
        seed: int = 0,
        columns: int = 8,
        grid: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        """Sample images into a grid (a PNG file), or into a folder of PNG files, or both.

        Args:
            n: number of images, or their z of shape (N, z_dim).
            seed: of z, where ``n`` is a number.
            columns: of the grid.
            grid: its file.
            folder: of single files.

        Raises:
            UsageError: the folder has other files.
        """
        if folder is not None:
            sampling.refuse_to_mix(folder)
        images = self._images(n if isinstance(n, np.ndarray) else self.latents(n, seed=seed))
        if folder is not None:
            sampling.save_folder(folder, sampling.to_uint8(images))
        if grid is not None:
            sampling.save_png(grid, sampling.image_grid(images, columns))

    def _images(self, z: np.ndarray | Tensor) -> Tensor:
        latents = torch.as_tensor(z, dtype=torch.float32)
        return sampling.images_of(self.network, latents, next(self.network.parameters()).device)

    def _pixels(self, images_BCHW: Tensor) -> np.ndarray:
        pixels = sampling.to_uint8(images_BCHW)[:, : self.hparams.channels]
        array: np.ndarray = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        return array


def read_latents(path: Path, z_dim: int) -> np.ndarray:
    """z of shape (N, z_dim), float32, from an ``.npy`` file, or from an ``.npz``'s only array or its array ``z``.

    Raises:
        DataError: there is no such file, or its array has another shape or type.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}", "Save z with np.save.")
    array = numpy_file(path, "z", f"Save an array of shape (N, {z_dim}) with np.save.")
    if array.ndim != 2 or array.shape[1] != z_dim or not len(array) or array.dtype.kind not in "fiu":
        raise DataError(
            f"{path} has an array of shape {array.shape} and type {array.dtype}",
            f"This generator needs numbers of shape (N, {z_dim}), a row for each image.",
        )
    latents: np.ndarray = array.astype(np.float32)
    if not np.isfinite(latents).all():
        raise DataError(f"{path} has values that are not finite", "Every element of z must be a number.")
    return latents


def load_generator(path: str | Path, *, device: str = "cpu", home: Home | None = None) -> Generator:
    """A generator from its published weights.

    Args:
        path: a folder with ``generator.safetensors`` and ``hparams.json``, that weights file, or a report's
            ``best.toml``.
        device: the network's device.
        home: where the trainings that a ``best.toml`` names are; ``HARNESS_HOME`` or ``runs/`` unless given.

    Raises:
        NotFoundError: there are no such files.
        CheckpointError: the weights do not fit the configuration, or are not those that ``best.toml`` names.

    >>> import harness
    >>> harness.load_generator("reports/tiny/best.toml")
    Generator(z_dim=8, normal z, images 16x16x1)
    """
    path = Path(path)
    if path.suffix == ".toml":
        folder = _folder_of_best(path, home or Home.from_environment())
    else:
        folder = path.parent if path.suffix == ".safetensors" else path
    settings = RunFolder(folder).hparams
    if not settings.is_file():
        raise NotFoundError(
            f"no generator in {folder}: there is no {settings.name}",
            f"Name a folder with {RunFolder(folder).weights.name} and {settings.name}, or a report's best.toml.",
        )
    try:
        stored = json.loads(settings.read_text(encoding="utf-8"))
    except ValueError:
        raise CheckpointError(f"{settings} is damaged: it is not JSON") from None
    return _published(folder, stored, f"the generator in {folder}", device)


def _published(folder: Path, stored: Mapping[str, Any], what: str, device: str = "cpu") -> Generator:
    hparams = HParams.from_stored(stored, what)
    return Generator(import_generator(folder, hparams, torch.device(device)), hparams)


def _folder_of_best(path: Path, home: Home) -> Path:
    """The folder of the weights of a ``best.toml``; their sha256 is checked if the file names it."""
    best = load_best(path)
    if best.weights is None:
        return home.root / _numbered(study_to_record(started_study(best.study, home)), best.trial).attrs.folder
    weights = home.within(*Path(best.weights.path).parts)
    if not weights.is_file():
        missing = f"the weights that {path} names are not in {home.root}: {best.weights.path}"
        raise NotFoundError(missing, f"They are where the study ran. Train again: `harness train --config {path}`.")
    if atomic.file_sha256(weights) != best.weights.sha256:
        raise CheckpointError(f"{weights} is not the file that {path} names: its sha256 differs")
    return weights.parent


def _numbered(record: StudyRecord, number: int) -> TrialRecord:
    for trial in record.trials:
        if trial.number == number and trial.attrs.folder:
            return trial
    raise NotFoundError(f"study {record.name} has no trial {number} that was started")


def best_trial(record: StudyRecord, home: Home, say: Callable[[str], None]) -> TrialRecord:
    """The trial of :func:`best_training`, with its files; NotFoundError if no trial is finished."""
    plan = find_confirmation(record.name, home)
    trial = best_training(record, plan)
    if trial is None:
        hint = f"`harness sweep {record.name}{record.data_option}` continues it."
        raise NotFoundError(f"no trial of {record.name} is finished yet", hint)
    bring_results(plan if plan and trial.attrs.arm else record, home, say, [trial])
    return trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A generator, the seed of its scoring protocol, its name in words, its folder, and its model card.

    ``card`` takes the licence of the training images, "" if it is unknown.
    """

    generator: Generator
    seed: int
    what: str
    folder: Path
    card: Callable[[str], str]


def study_generator(study: str, number: int | None, home: Home, say: Callable[[str], None]) -> Published:
    """The generator of a study's trial, of the best one if ``number`` is None."""
    record = study_to_record(started_study(study, home))
    if number is None:
        trial = best_trial(record, home, say)
    else:
        trial = _numbered(record, number)
        bring_results(record, home, say, [trial])
    folder = home.root / trial.attrs.folder

    def card(licence: str) -> str:
        from harness.report.card import study_card  # with pandas and matplotlib: seconds

        return study_card(record, find_confirmation(study, home), trial, home.root, licence)

    return Published(
        generator=_published(folder, trial.attrs.hparams, f"trial {trial.number} of {study}"),
        seed=record.attrs.spec["scoring"]["final"]["seed"],
        what=f"trial {trial.number}" + (f" ({trial.attrs.preset})" if trial.attrs.arm else ""),
        folder=folder,
        card=card,
    )


def training_generator(training: str, home: Home) -> Published:
    """The generator of a finished ``harness train``."""
    done = [path.name for path in sorted(home.within("trainings").glob("*")) if RunFolder(path).summary.is_file()]
    if training not in done:
        guess = did_you_mean(training, done)
        raise NotFoundError(f"no finished training {training!r}{guess}", f"There are: {', '.join(done) or 'none'}.")
    folder = home.training_dir(training)
    summary = RunFolder(folder).read_summary()
    what = f"training {training}"

    def card(licence: str) -> str:
        from harness.report.card import training_card

        return training_card(training, summary, licence)

    return Published(
        generator=_published(folder, summary["hparams"], what),
        seed=int(summary["scoring"]["seed"]),
        what=what,
        folder=folder,
        card=card,
    )
