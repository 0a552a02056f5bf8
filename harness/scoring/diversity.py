"""How diverse samples are, whether they copy training images, and an audit of a finished generator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.errors import DataError
from harness.gan.hparams import HParams, derive_seed
from harness.scoring.reference import reference_images
from harness.scoring.sampling import BATCH, GRID_IMAGES, GRID_SEED, generate, image_grid, to_uint8

if TYPE_CHECKING:  # they need total_variance
    from harness.scoring.extractors import Extractor
    from harness.scoring.scorer import Scorer

# Real images whose mean distance is computed.
_REAL_IMAGES = 256
# Rows per block where each row is compared with all others.
_ROWS = 1_000
# Samples, and real images, whose nearest training images are compared in an audit.
_COMPARED = 500
# Pairs of a sample and its nearest training image that are shown.
_SHOWN = 8


def mean_distance(images_BCHW: Tensor) -> float:
    """Mean Euclidean distance between two of the images, per pixel value (0 to 1); in [-1, 1] or uint8; 0 for one."""
    if len(images_BCHW) < 2:
        return 0.0
    scale = 255.0 if images_BCHW.dtype == torch.uint8 else 2.0
    flat = images_BCHW.flatten(1).double() / scale
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)


def real_distance(images_NHWC: Tensor) -> float:
    """:func:`mean_distance` of the first real images of the fixed shuffle that references are drawn by."""
    return mean_distance(reference_images(images_NHWC, min(_REAL_IMAGES, len(images_NHWC))))


def total_variance(features: Tensor) -> float:
    """The trace of the features' covariance; features of shape (N, D)."""
    return float(features.double().var(dim=0).sum())


def nearest(features: Tensor, others: Tensor, *, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(distance, row) of the nearest of the others (M, D) for each of the features (N, D).

    ``own``, shape (N,), says where each is itself among the others; it is not its own neighbour.
    """
    distances, rows = [], []
    for start in range(0, len(features), _ROWS):
        block = torch.cdist(features[start : start + _ROWS], others)
        if own is not None:
            block[torch.arange(len(block)), own[start : start + _ROWS]] = torch.inf
        closest = block.min(dim=1)
        distances.append(closest.values)
        rows.append(closest.indices)
    return torch.cat(distances), torch.cat(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copying:
    """Whether samples are nearer to training images than real ones are to each other.

    ``probability`` that a sample is nearer to its nearest training image than a real image is to its nearest other:
    0.5 where samples are as new as real images are, 1 for copies. ``p`` is that of the one-sided rank test.
    """

    probability: float
    p: float

    @property
    def memorises(self) -> bool:
        """At least a third of the samples are copies (probability 2/3), and chance is ruled out."""
        return self.probability > 0.65 and self.p < 0.001


def copying(of_samples: Tensor, of_real: Tensor) -> Copying:
    """The test for data-copying of Meehan et al. (2020, section 2): Mann and Whitney's, on distances to neighbours."""
    from scipy.stats import mannwhitneyu  # takes a second to import, and only audits need it

    test = mannwhitneyu(of_real.numpy(), of_samples.numpy(), alternative="greater")
    return Copying(probability=float(test.statistic) / (len(of_samples) * len(of_real)), p=float(test.pvalue))


class RealImages:
    """Training images with MobileNetV2's features, which show copies as well as any, to look up the nearest ones."""

    def __init__(self, images_NHWC: Tensor, extractor: Extractor) -> None:
        self.extractor = extractor
        images = images_NHWC.permute(0, 3, 1, 2)  # still memory-mapped: all of them may not fit in memory
        self.images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        self.features = extractor(self.images).pooled
        self.mean_distance = real_distance(images_NHWC)
        if not self.mean_distance:
            raise DataError(
                f"the first {min(_REAL_IMAGES, len(images_NHWC))} training images are all the same",
                "An audit compares samples with training images: give images that differ.",
            )
        rng = torch.Generator().manual_seed(derive_seed("audit", len(self.images)))
        chosen = torch.randperm(len(self.images), generator=rng)[:_COMPARED]
        self.distances, _ = nearest(self.features[chosen], self.features, own=chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """An audit's results. ``batch_score`` minus ``score`` is the BatchNorm gap; both of ``metric``, one sampling."""

    metric: str
    score: float
    batch_score: float
    copying: Copying
    sample_distance: float
    pairs: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        plain = dataclasses.asdict(self) | {"compared": _COMPARED}
        plain["copying"]["memorises"] = self.copying.memorises
        del plain["pairs"]
        return plain


def audit(generator: nn.Module, hp: HParams, scorer: Scorer, real: RealImages) -> Audit:
    """Audit a generator under a final protocol.

    Its score with running statistics is compared with that of the same noise with the statistics of each batch, which
    training uses: a gap means the running statistics do not match them. Samples are compared with all training images.
    """
    device = scorer.extractor.device
    both = (scorer, scorer.with_protocol(batch_norm=f"statistics of batches of {BATCH}"))
    scores = [each(generator, hp, all_metrics=False).values[each.objective] for each in both]
    samples = to_uint8(generate(generator, hp, _COMPARED, scorer.protocol.seed, device))
    distances, _ = nearest(real.extractor(samples).pooled, real.features)
    grid = to_uint8(generate(generator, hp, GRID_IMAGES, GRID_SEED, device))
    closest, rows = nearest(real.extractor(grid).pooled, real.features)
    shown = closest.argsort()[:_SHOWN]
    pairs = torch.cat([grid[shown], real.images[rows[shown]]])
    return Audit(
        metric=scorer.objective,
        score=scores[0],
        batch_score=scores[1],
        copying=copying(distances, real.distances),
        sample_distance=mean_distance(grid) / real.mean_distance,
        pairs=image_grid(pairs.float().div(127.5).sub(1), columns=_SHOWN),
    )
