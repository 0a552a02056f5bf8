"""Training, scoring and auditing in the caller's process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness import atomic
from harness.api.generator import Generator, best_trial
from harness.data.store import ImageStore, OnProgress, open_array_store, open_store
from harness.errors import DataError, UsageError
from harness.findings.health import audited
from harness.findings.ranking import leading
from harness.gan.hparams import HParams
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress
from harness.gan.trainer import train as train_gan
from harness.home import Home
from harness.machine.processes import choose_device, exact_arithmetic, keep_memory
from harness.scoring.diversity import RealImages, audit
from harness.scoring.fidelity import ALL, Scores
from harness.scoring.fidelity import score as score_images
from harness.scoring.protocol import INCEPTION, MOBILENET
from harness.scoring.sampling import save_png
from harness.scoring.scorer import Scorers
from harness.spec.files import load_study_file
from harness.spec.tables import DataSpec, ScoreSpec
from harness.store.records import TrialRecord
from harness.store.studies import started_study, stored_spec, study_to_record
from harness.sweep.run import refuse_other_images
from harness.text import did_you_mean
from harness.training.export import import_generator
from harness.training.run_folder import RunFolder
from harness.training.share import bring_results

# A score needs this many images on either side.
_FEWEST = 20


def train(
    hparams: HParams | Mapping[str, Any],
    images: Any,
    *,
    kimg: float,
    snapshots_kimg: Sequence[float] = (),
    seed: int = 0,
    device: str = "auto",
    resume: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[Progress | Snapshot]:
    """Train a DCGAN in this process; the caller logs, scores, saves or stops at what it yields.

    Args:
        hparams: the configuration, such as ``study.best.hparams``.
        images: uint8 of shape (N, H, W, C) or a data set that yields images; or a folder, a zip or a ``.npy`` file; or
            the name of a study file.
        kimg: length in thousands of real images.
        snapshots_kimg: where to yield a Snapshot on the way; the last one comes at the end.
        seed: of weights, data order and noise. On one device the same seed gives the same result.
        device: ``auto``, ``cpu`` or ``cuda``.
        resume: the ``state`` of a Snapshot of the same configuration, seed and images.
        say: called with what a person should know of the images, such as files left out.

    Yields:
        Progress with the means of the losses; a Snapshot with ``generator`` (a torch module) and ``state``.

    Raises:
        Diverged: a gradient was not finite.
        DataError: there are fewer images than one batch.

    >>> import harness, numpy
    >>> images = numpy.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), dtype="uint8")
    >>> hparams = harness.HParams(image_size=16, channels=1, ngf=4, ndf=4, z_dim=8, batch_size=8)
    >>> for event in harness.train(hparams, images, kimg=0.04, device="cpu"):
    ...     last = event
    >>> last.step, harness.Generator(last.generator, hparams).sample(2).shape
    (5, (2, 16, 16, 1))
    """
    hp = hparams if isinstance(hparams, HParams) else HParams.from_params(hparams)
    store = load_images(images, hp, Home.from_environment(), say)
    exact_arithmetic()
    yield from train_gan(
        hp,
        store.tensor(),
        budget=Budget(kimg=kimg, snapshots_kimg=tuple(snapshots_kimg)),
        seed=seed,
        device=torch.device(choose_device(device)),
        resume=resume,
    )


def score(
    generator: Generator | Callable[[Tensor], Any],
    real_images: Any,
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
        real_images: as the images of :func:`train`.
        metrics: any of ``fid``, ``kid``, ``is``, ``precision`` and ``recall``.
        samples: images to generate; compared with as many real ones, or all if there are fewer.
        extractor: feature network; ``mobilenet-v2`` is faster, and its scores have ``mnv2`` in their names.
        seed: of z.
        z_dim: of z, if the generator is a function.
        latent: law of z, if the generator is a function.
        device: ``auto``, ``cpu`` or ``cuda``.
        say: called with messages about long steps, such as fetching weights.

    Returns:
        ``values`` by names that include the protocol, such as ``fid10k``; ``unavailable`` with reasons (without
            Inception's classifier head, MobileNetV2 gives ``is_mnv2_10k``); ``protocol_hash``: only scores with the
            same hash are comparable.

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
    store = load_images(real_images, hp, home, say)
    try:
        spec = ScoreSpec(extractor=extractor, samples=samples, reference=min(samples, len(store)), seed=seed)
    except ValueError:
        if len(store) < _FEWEST:
            raise DataError(f"{len(store)} real images are too few for a score", f"Give at least {_FEWEST}.") from None
        raise UsageError(f"samples={samples!r}, seed={seed!r}: no such score", "See help(harness.score).") from None
    scorers = Scorers(home, store, place, say)
    protocol, reference = scorers.protocol(spec), scorers.reference(spec)
    network.to(place)
    scores = score_images(network, hp, reference, protocol, scorers.extractor(extractor), only=tuple(metrics))
    if extractor == INCEPTION and protocol.metric("is") in scores.unavailable and not scores.reason:
        named = replace(protocol, extractor=MOBILENET)
        more = score_images(network, hp, reference, named, scorers.extractor(MOBILENET), only=("is",))
        scores = replace(scores, values=scores.values | more.values)
    return scores


def audit_study(
    study_name: str,
    home: Home,
    *,
    top: int,
    source: Path | None,
    device: str,
    on_images: OnProgress,
    say: Callable[[str], None],
) -> int:
    """Audit the best ``top`` trials of a study and the confirmed best, if not done before; return the number.

    Each trial's folder gets ``audit.json``, and a picture of samples with their nearest training images.
    """
    study = started_study(study_name, home)
    spec, record = stored_spec(study), study_to_record(study)
    bring_results(record, home, say)
    best = best_trial(record, home, say)
    chosen = [*leading(record)[:top], *([best] if best.attrs.arm else [])]
    waiting = [trial for trial in chosen if audited(trial, home.root) is None]
    if not waiting:
        return 0
    keep_memory()
    exact_arithmetic()
    place = torch.device(choose_device(device))
    store = open_store(home, spec.data, source, study=study_name, on_progress=on_images, say=say)
    refuse_other_images(study, store.fingerprint)
    scorers = Scorers(home, store, place, say)
    scorer = scorers.scorer(spec.scoring.final)
    if others := [_name(trial) for trial in waiting if trial.attrs.protocol_hash != scorer.protocol.hash]:
        raise DataError(
            f"{', '.join(others)}: scored under another protocol than this machine's ({scorer.protocol.hash})",
            "Weights or versions of torch and torch-fidelity differ: audit where the study ran, or install those.",
        )
    say(f"features of {len(store)} training images")
    real = RealImages(store.tensor(), scorers.extractor(MOBILENET))
    for count, trial in enumerate(waiting, start=1):
        say(f"auditing {_name(trial)} ({count} of {len(waiting)})")
        hp = HParams.from_stored(trial.attrs.hparams, f"{_name(trial)} of {study_name}")
        folder = RunFolder(home.root / trial.attrs.folder)
        result = audit(import_generator(folder.path, hp, place), hp, scorer, real)
        save_png(folder.nearest, result.pairs)
        stated = {**result.to_dict(), "protocol_hash": scorer.protocol.hash}
        atomic.write_text(folder.audit, json.dumps(stated, indent=1) + "\n")
    return len(waiting)


def _name(trial: TrialRecord) -> str:
    """A trial's name for people; in a fixed study, its configuration and seed."""
    return trial.attrs.preset if trial.attrs.arm else f"trial {trial.number}"


def load_images(images: Any, hp: HParams, home: Home, say: Callable[[str], None]) -> ImageStore:
    """The caller's images, prepared for a configuration's networks."""
    if isinstance(images, str) and not Path(images).exists():
        return open_store(home, load_study_file(images).data, None, study=images, on_progress=_quiet, say=say)
    try:
        data = DataSpec.model_validate({"source": "folder", "image_size": hp.image_size, "channels": hp.channels})
    except ValueError:
        raise UsageError(
            f"the generator's images have {hp.channels} channels of {hp.image_size} px",
            "Use 1 or 3 channels, and 16, 32, 64, 128 or 256 px.",
        ) from None
    if isinstance(images, str | Path):
        return open_store(home, data, Path(images), study="images", on_progress=_quiet, say=say)
    return open_array_store(home, images, data, say=say)


def _quiet(*_: object) -> None:
    pass


def _network(generator: Generator | Callable[[Tensor], Any], z_dim: int, latent: str) -> tuple[nn.Module, HParams]:
    """A generator or function as a module, with settings that fit its z and images."""
    if isinstance(generator, Generator):
        return generator.network, generator.hparams
    network = _Function(generator)
    with torch.inference_mode():
        _, channels, _, side = network(torch.zeros(2, z_dim)).shape
    settings = {"z_dim": z_dim, "latent": latent, "image_size": int(side), "channels": int(channels)}
    return network, HParams.from_params(settings)


class _Function(nn.Module):
    """A caller's function of z as a module that returns float images of shape (N, C, H, W) in [-1, 1]."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        images = torch.as_tensor(self.function(z))
        if images.dtype == torch.uint8:
            return images.permute(0, 3, 1, 2).float() / 127.5 - 1
        return images
