"""How diverse samples are, and whether they copy training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.scoring.reference import reference_images

# Real images whose mean distance is computed.
REAL_IMAGES = 256
# Rows per block where each row is compared with all others.
_ROWS = 1_000


def mean_distance(images_BCHW: Tensor) -> float:
    """Mean Euclidean distance between two of the images, per pixel value (0 to 1); in [-1, 1] or uint8; 0 for one."""
    if len(images_BCHW) < 2:
        return 0.0
    scale = 255.0 if images_BCHW.dtype == torch.uint8 else 2.0
    flat = images_BCHW.flatten(1).double() / scale
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)


def real_distance(images_NHWC: Tensor) -> float:
    """:func:`mean_distance` of the first real images of the fixed shuffle that references are drawn by."""
    return mean_distance(reference_images(images_NHWC, min(REAL_IMAGES, len(images_NHWC))))


def total_variance(features: Tensor) -> float:
    """The trace of the features' covariance; features of shape (N, D)."""
    return float(features.double().var(dim=0).sum())


def nearest(features: Tensor, others: Tensor, *, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(distance, row) of the nearest other of each, shapes (N,).

    Args:
        features: (N, D).
        others: (M, D), M > 1.
        own: where each is itself among the others, shape (N,); it is not its own neighbour.
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
    """The test for data-copying of Meehan et al. (2020, section 2): Mann and Whitney's, on distances to neighbours.

    Args:
        of_samples: distance of each sample to its nearest training image, shape (N,).
        of_real: distance of each real image to its nearest other training image, shape (M,).
    """
    from scipy.stats import mannwhitneyu  # takes a second to import, and only audits need it

    test = mannwhitneyu(of_real.numpy(), of_samples.numpy(), alternative="greater")
    return Copying(probability=float(test.statistic) / (len(of_samples) * len(of_real)), p=float(test.pvalue))
