"""The real images that scores compare with: how they are chosen, their cached features, and distances to them."""

from __future__ import annotations

import functools
import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from harness import atomic
from harness.data.store import ImageStore
from harness.errors import DataError
from harness.gan.hparams import derive_seed, digest
from harness.home import Home
from harness.scoring.protocol import Protocol
from harness.scoring.sampling import save_folder
from harness.spec.tables import ScoreSpec

# Total variance, as a share of the mean square, that rounding alone gives features of one image.
_LEAST_SPREAD = 1e-9
# The most processes that compute parts of one reference at the same time.
_LOCKS = 16


@dataclass(frozen=True, slots=True)
class Features:
    """``pooled``: (N, D) float32. ``logits``: (N, classes) float32, or None without a classifier head."""

    pooled: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Reference:
    """Real images as features, shape (n, D), with statistics in float64 that are computed when first asked for."""

    features: Tensor

    @functools.cached_property
    def mu(self) -> Tensor:
        return self.features.double().mean(dim=0)

    @functools.cached_property
    def sigma(self) -> Tensor:
        return torch.cov(self.features.double().T)

    @functools.cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance, shape (D, D)."""
        values, vectors = torch.linalg.eigh(self.sigma)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return root


def frechet_distance(pooled: Tensor, reference: Reference, device: torch.device | None = None) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2))``, Heusel et al. (2017), equation 6, in float64.

    torch-fidelity's value on the same features, shape (n, D) with n > 1, in a fraction of the time, for rungs. The
    trace of the root needs the eigenvalues of ``S1 S2``, which is not symmetric. With fewer samples n than features D,
    those that are not zero are the eigenvalues of the symmetric ``X S2 X^T`` of n by n, with the centred features ``X /
    sqrt(n - 1)``; else of the symmetric ``R S1 R``, with the cached root ``R`` of ``S2``, which is ``(X R)^T X R`` in
    4 n D^2 FLOP, or ``R (X^T X) R`` in 2 n D^2 + 4 D^3: fewer where n > 2 D.
    """
    features = pooled.to(device=device, dtype=torch.float64)
    n, width = features.shape
    mu = features.mean(dim=0)
    centred = (features - mu) / math.sqrt(n - 1)
    real_mu, sigma = (statistic.to(features.device) for statistic in (reference.mu, reference.sigma))
    if n < width:
        product = centred @ sigma @ centred.T
    else:
        root = reference.root.to(features.device)
        if n > 2 * width:
            product = root @ (centred.T @ centred) @ root
        else:
            rooted = centred @ root
            product = rooted.T @ rooted
    cross = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
    difference = mu - real_mu
    return float(difference @ difference + centred.square().sum() + sigma.trace() - 2 * cross)


def split_images(store: ImageStore, spec: ScoreSpec) -> Tensor:
    """The real images that a protocol compares with, uint8, shape (N, H, W, C)."""
    return store.held_out() if spec.split == "held_out" else store.tensor()


def reference_images(images_NHWC: Tensor, n: int) -> Tensor:
    """The first n images of a shuffle that depends only on their number, as uint8 of shape (n, 3, H, W)."""
    if len(images_NHWC) < n:
        raise DataError(
            f"the scoring protocol compares with {n} real images, but there are {len(images_NHWC)}",
            "Give more images, or lower `reference` in the study's [scoring] tables.",
        )
    rng = torch.Generator().manual_seed(derive_seed("reference", len(images_NHWC)))
    chosen = torch.randperm(len(images_NHWC), generator=rng)[:n].sort().values
    images = images_NHWC[chosen].permute(0, 3, 1, 2).contiguous()
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def refuse_equal(images_NHWC: Tensor, protocol: Protocol) -> None:
    """Raise a DataError if all real images of a protocol are equal, before anything is computed from them."""
    images = reference_images(images_NHWC, protocol.reference_images)
    if all(torch.equal(image, images[0]) for image in images):
        raise _without_spread(len(images), protocol.extractor, "all the same")


def _without_spread(n: int, extractor: str, what: str) -> DataError:
    return DataError(
        f"the {n} real images that {extractor} compares with are {what}: no score can be computed from them",
        "Look at them with `harness data grid`, and give images that differ.",
    )


def load_reference(
    home: Home,
    images_NHWC: Tensor,
    protocol: Protocol,
    extract: Callable[[Tensor], Features],
    *,
    part: int = 64,
    begins: Callable[[], None] | None = None,
) -> Reference:
    """The reference of a protocol, from the cache or computed now by ``extract``; a damaged file is replaced.

    Processes that need it at the same time compute it together, ``part`` images at a time, and what is done outlives a
    kill. One of them calls ``begins`` first. A DataError refuses a reference that nothing can be compared with: images
    without differences, or features that are not finite.
    """
    path = reference_path(home, protocol)
    features = _cached(path)
    while features is None:
        parts = _parts(home, images_NHWC, protocol, part)
        first = True
        for timeout in (0, -1):  # those that another process has begun come last, mostly done by then
            for one in parts:
                begun = one.compute(extract, timeout, begins if first else None)
                first = first and begun is None
        with FileLock(path.parent / ".lock"):
            atomic.remove_torn(path.parent)
            features = _cached(path)
            found = [done for one in parts if (done := _cached(one.file)) is not None]
            if features is None and len(found) == len(parts):
                features = torch.cat(found)
                _write(path, features)
            if features is not None:
                shutil.rmtree(parts[0].file.parent, ignore_errors=True)
    pooled = features.double()
    spread, scale = float(pooled.var(dim=0).sum()), float(pooled.square().sum(dim=1).mean())
    if not _LEAST_SPREAD * scale < spread < math.inf:  # nor NaN
        what = "all the same" if spread <= _LEAST_SPREAD * scale else "of features that are not finite"
        raise _without_spread(len(features), protocol.extractor, what)
    return Reference(features)


def prepare_reference(
    home: Home,
    images_NHWC: Tensor,
    protocol: Protocol,
    extract: Callable[[Tensor], Features],
    *,
    part: int = 64,
    begins: Callable[[], None] | None = None,
) -> bool:
    """Compute one part of a reference that will be needed; False if all parts have been begun."""
    if reference_path(home, protocol).is_file():
        return False
    parts = _parts(home, images_NHWC, protocol, part)
    return any(one.compute(extract, 0, begins if one.number == 0 else None) for one in parts)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of a reference's images, shape (n, 3, H, W), and the file of their features until the whole is there."""

    number: int
    file: Path
    images: Tensor
    whole: Path

    def compute(
        self, extract: Callable[[Tensor], Features], timeout: float, begins: Callable[[], None] | None
    ) -> bool | None:
        """True if it was computed here, None if it was there, False if another process has not ended it in time (s)."""
        try:
            with FileLock(self.whole.parent / f".part-{self.number % _LOCKS}.lock", timeout=timeout):
                # In this order: the parts go once the whole is there.
                if _cached(self.file) is not None or _cached(self.whole) is not None:
                    return None
                if begins:
                    begins()
                _write(self.file, extract(self.images).pooled.contiguous())
                return True
        except Timeout:
            return False


def _parts(home: Home, images_NHWC: Tensor, protocol: Protocol, part: int) -> list[_Part]:
    whole = reference_path(home, protocol)
    home.private(whole.parent)
    folder = whole.with_suffix(".parts")
    pieces = torch.split(reference_images(images_NHWC, protocol.reference_images), part)
    return [_Part(at, folder / f"{part}-{at}.safetensors", images, whole) for at, images in enumerate(pieces)]


def reference_path(home: Home, protocol: Protocol) -> Path:
    """The file of a protocol's reference, whether or not it is there."""
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
    return home.references / f"{protocol.extractor}-{key}.safetensors"


def _write(path: Path, features: Tensor) -> None:
    atomic.write_bytes(path, save({"features": features}, {"sha256": _sha256(features)}))


def _cached(path: Path) -> Tensor | None:
    try:
        with safe_open(path, "pt") as file:
            features: Tensor = file.get_tensor("features")
            whole = (file.metadata() or {}).get("sha256") == _sha256(features)
    except (SafetensorError, OSError):
        return None
    return features if whole else None


def _sha256(features: Tensor) -> str:
    return hashlib.sha256(features.numpy().data).hexdigest()


def save_reference(folder: Path, store: ImageStore, scoring: ScoreSpec) -> int:
    """Write the real images that a protocol compares with to an empty folder; return how many they are."""
    images = reference_images(split_images(store, scoring), scoring.n_reference)
    save_folder(folder, images, made_by="")  # photographs, as they were given
    return len(images)
