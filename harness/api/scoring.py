"""Training and scoring in the caller's process: events of a training, and scores of any generator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness.api.generator import Generator
from harness.data.store import open_store
from harness.errors import UsageError
from harness.gan.hparams import HParams
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress
from harness.gan.trainer import train as train_gan
from harness.home import Home
from harness.machine.devices import choose_device
from harness.machine.processes import exact_arithmetic
from harness.scoring.extractors import Extractor
from harness.scoring.fidelity import ALL, Scores, versions
from harness.scoring.fidelity import score as score_images
from harness.scoring.protocol import INCEPTION, MOBILENET, Protocol, make_protocol
from harness.scoring.reference import load_reference
from harness.spec.files import load_study_file
from harness.spec.images import DataSpec
from harness.spec.scoring import ScoreSpec
from harness.text import did_you_mean

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def train(
    hparams: HParams | Mapping[str, Any],
    images: ArrayLike | str | Path,
    *,
    kimg: float,
    snapshots_kimg: Sequence[float] = (),
    seed: int = 0,
    device: str = "auto",
    resume: dict[str, Any] | None = None,
) -> Iterator[Progress | Snapshot]:
    """Train a DCGAN in this process; what it yields is the caller's to log, score, save or stop at.

    Args:
        hparams: the configuration, such as ``study.best.hparams``.
        images: uint8 of shape (N, H, W, C); or a folder or zip of images; or the name of a study file.
        kimg: length in thousands of real images.
        snapshots_kimg: where to yield a Snapshot on the way; the last one comes at the end.
        seed: of weights, data order and noise. On one device the same seed gives the same result.
        device: ``auto``, ``cpu`` or ``cuda``.
        resume: the ``state`` of a Snapshot of the same configuration, seed and images.

    Yields:
        Progress with the means of the losses; a Snapshot with ``generator`` (a torch module) and ``state``.

    Raises:
        Diverged: a gradient was not finite.
        DataError: there are fewer images than one batch.

    >>> import harness, numpy
    >>> images = numpy.zeros((16, 16, 16, 1), dtype="uint8")
    >>> hparams = harness.HParams(image_size=16, channels=1, ngf=4, ndf=4, z_dim=8, batch_size=8)
    >>> for event in harness.train(hparams, images, kimg=0.04, device="cpu"):
    ...     last = event
    >>> last.step, harness.Generator(last.generator, hparams).sample(2).shape
    (5, (2, 16, 16, 1))
    """
    hp = hparams if isinstance(hparams, HParams) else HParams.from_params(hparams)
    pixels, _, _ = load_images(images, hp, Home.from_environment())
    exact_arithmetic()
    yield from train_gan(
        hp,
        pixels,
        budget=Budget(kimg=kimg, snapshots_kimg=tuple(snapshots_kimg)),
        seed=seed,
        device=torch.device(choose_device(device)),
        resume=resume,
    )


def score(
    generator: Generator | Callable[[Tensor], Any],
    real_images: ArrayLike | str | Path,
    *,
    metrics: Sequence[str] = ("fid", "kid", "is"),
    samples: int = 10_000,
    extractor: Literal["inception-v3", "mobilenet-v2"] = "inception-v3",
    seed: int = 2020,
    z_dim: int = 100,
    latent: Literal["normal", "uniform", "truncated_normal"] = "normal",
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Scores:
    """Score a generator against real images, as torch-fidelity's ``calculate_metrics`` does.

    Args:
        generator: ours, or any function of z, float32 of shape (N, z_dim), that returns images: float of shape
            (N, C, H, W) in [-1, 1], or uint8 of shape (N, H, W, C).
        real_images: uint8 of shape (N, H, W, C); or a folder or zip of images; or the name of a study file.
        metrics: any of ``fid``, ``kid``, ``is``, ``precision`` and ``recall``.
        samples: images to generate; as many real ones are compared, or all there are.
        extractor: whose features; ``mobilenet-v2`` is faster, and its scores carry ``mnv2`` in their names.
        seed: of z.
        z_dim: of z, where the generator is a function.
        latent: law of z, where the generator is a function.
        device: ``auto``, ``cpu`` or ``cuda``.
        say: called with what takes long, such as fetching weights.

    Returns:
        ``values`` by full names that carry the protocol, such as ``fid10k``; ``unavailable`` with reasons (without
        Inception's classifier head there is MobileNetV2's ``is_mnv2_10k``); ``protocol_hash``: only scores of equal
        hashes are comparable.

    Raises:
        UsageError: an unknown metric.
        DataError: too few real images.

    >>> import harness, numpy
    >>> real = numpy.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype="uint8")
    >>> def noise(z):
    ...     return z.reshape(-1, 3, 16, 16).tanh()
    >>> scores = harness.score(noise, real, metrics=["fid"], samples=20, extractor="mobilenet-v2", z_dim=768)
    >>> list(scores.values)
    ['fid_mnv2_20']
    """
    if unknown := sorted({*metrics} - {*ALL}):
        guess = did_you_mean(unknown[0], ALL)
        raise UsageError(f"unknown metric {unknown[0]!r}{guess}", f"There are: {', '.join(ALL)}.")
    exact_arithmetic()
    home, place = Home.from_environment(), torch.device(choose_device(device))
    network, hp = _network(generator, z_dim, latent)
    real, fingerprint, split_rule = load_images(real_images, hp, home)
    spec = ScoreSpec(extractor=extractor, samples=samples, reference=min(samples, len(real)), seed=seed)
    network.to(place)

    def scored(name: str, names: tuple[str, ...], bound_to: Protocol | None) -> tuple[Scores, Protocol]:
        features = Extractor(name, home, place, say)
        protocol = make_protocol(
            spec,
            weights_sha256=features.weights.sha256,
            fingerprint=fingerprint,
            split_rule=split_rule,
            resize=features.resize,
            versions=versions(),
        )
        reference = load_reference(home, real, protocol, features)
        named = replace(bound_to, extractor=name) if bound_to else protocol
        return score_images(network, hp, reference, named, features, only=names), protocol

    scores, protocol = scored(extractor, tuple(metrics), None)
    if extractor == INCEPTION and protocol.metric("is") in scores.unavailable and not scores.reason:
        more, _ = scored(MOBILENET, ("is",), protocol)
        scores = replace(scores, values=scores.values | more.values)
    return scores


def load_images(images: ArrayLike | str | Path, hp: HParams, home: Home) -> tuple[Tensor, str, str]:
    """(uint8 images of shape (N, H, W, C), their fingerprint, how they were split) of what a caller gives.

    Raises:
        UsageError: an array of another type or shape.
        DataError: images cannot be had or used.
    """
    if isinstance(images, str | Path):
        is_study = isinstance(images, str) and not Path(images).exists()
        if is_study:
            data, source, name = load_study_file(str(images)).data, None, str(images)
        else:
            data = DataSpec.model_validate({"source": "folder", "image_size": hp.image_size, "channels": hp.channels})
            source, name = Path(images), "images"
        store = open_store(home, data, source, study=name, on_progress=lambda done, total: None, say=lambda text: None)
        return store.tensor(), store.fingerprint, store.split_rule
    array = np.ascontiguousarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3):
        raise UsageError(
            f"images have shape {array.shape} and type {array.dtype}",
            "Give uint8 of shape (N, H, W, 1) or (N, H, W, 3).",
        )
    fingerprint = hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()
    return torch.from_numpy(array if array.flags.writeable else array.copy()), fingerprint, "all images"


def _network(generator: Generator | Callable[[Tensor], Any], z_dim: int, latent: str) -> tuple[nn.Module, HParams]:
    """A generator, or a function that is one, as a module with the settings that its z and images need."""
    if isinstance(generator, Generator):
        return generator.network, generator.hparams
    network = _Function(generator)
    with torch.inference_mode():
        _, channels, _, side = network(torch.zeros(2, z_dim)).shape
    settings = {"z_dim": z_dim, "latent": latent, "image_size": int(side), "channels": int(channels)}
    return network, HParams.from_params(settings)


class _Function(nn.Module):
    """A caller's function of z as a module that gives float images of shape (N, C, H, W) in [-1, 1]."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        images = torch.as_tensor(self.function(z))
        if images.dtype == torch.uint8:
            return images.permute(0, 3, 1, 2).float() / 127.5 - 1
        return images
