"""Reference statistics of the real images, computed once per (images, protocol) and kept in a private folder."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from harness import atomic
from harness.errors import DataError
from harness.gan.hparams import derive_seed, digest
from harness.home import Home
from harness.scoring.protocol import Protocol


@dataclass(frozen=True, slots=True)
class Features:
    """``pooled``: (N, D) float32. ``logits``: (N, classes) float32, or None without a classifier head."""

    pooled: Tensor
    logits: Tensor | None


class Reference:
    """Real images as features, shape (n, D), with statistics in float64 that are computed when first asked for."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    @functools.cached_property
    def mu(self) -> Tensor:
        """Mean, shape (D,)."""
        return self.features.double().mean(dim=0)

    @functools.cached_property
    def sigma(self) -> Tensor:
        """Covariance, shape (D, D)."""
        return torch.cov(self.features.double().T)

    @functools.cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance, shape (D, D)."""
        values, vectors = torch.linalg.eigh(self.sigma)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return root


def reference_images(images_NHWC: Tensor, n: int) -> Tensor:
    """The first n images of a shuffle that depends only on the number of images, as uint8 of shape (n, 3, H, W).

    Raises:
        DataError: fewer than n images.
    """
    if len(images_NHWC) < n:
        raise DataError(
            f"the scoring protocol compares with {n} real images, but there are {len(images_NHWC)}",
            "Give more images, or lower `reference` in the study's [scoring] tables.",
        )
    rng = torch.Generator().manual_seed(derive_seed("reference", len(images_NHWC)))
    chosen = torch.randperm(len(images_NHWC), generator=rng)[:n].sort().values
    images = images_NHWC[chosen].permute(0, 3, 1, 2).contiguous()
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def load_reference(
    home: Home, images_NHWC: Tensor, protocol: Protocol, extract: Callable[[Tensor], Features]
) -> Reference:
    """The reference of a protocol, from the cache or computed now by ``extract`` (uint8 images to features).

    The cache's key holds the fingerprint of the images and the digest of the weights; a damaged file is replaced.

    Raises:
        DataError: fewer images than the protocol asks for.
    """
    key = digest(
        {
            "extractor": protocol.extractor,
            "weights": protocol.weights_sha256,
            "precision": protocol.precision,
            "resize": protocol.resize,
            "images": protocol.reference_fingerprint,
            "split": protocol.reference_split,
            "n": protocol.reference_images,
            "versions": dict(protocol.versions),
        }
    )
    folder = home.private(home.references)
    path = folder / f"{protocol.extractor}-{key}.safetensors"
    with FileLock(folder / ".lock"):
        atomic.remove_torn(folder)
        features = _cached(path)
        if features is None:
            features = extract(reference_images(images_NHWC, protocol.reference_images)).pooled.contiguous()
            atomic.write_bytes(path, save({"features": features}, {"sha256": _sha256(features)}))
    return Reference(features)


def _cached(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            features: Tensor = file.get_tensor("features")
            whole = (file.metadata() or {}).get("sha256") == _sha256(features)
    except (SafetensorError, OSError):
        return None
    return features if whole else None


def _sha256(features: Tensor) -> str:
    return hashlib.sha256(features.numpy().data).hexdigest()
