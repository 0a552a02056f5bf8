"""An audit of a finished generator: its score with batch statistics, and its nearest training images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.gan.hparams import HParams, derive_seed
from harness.scoring.diversity import Copying, copying, mean_distance, nearest, real_distance
from harness.scoring.extractors import Extractor
from harness.scoring.sampling import GRID_IMAGES, GRID_SEED, generate, image_grid, to_uint8
from harness.scoring.scorer import Scorer

# Samples, and real images, whose nearest training images are compared.
_COMPARED = 500
# Pairs of a sample and its nearest training image that are shown.
_SHOWN = 8


class RealImages:
    """Training images with their features, to look up the nearest ones.

    Args:
        images_NHWC: uint8.
        extractor: gives the features; MobileNetV2's take seconds for all images and show copies as well as any.
    """

    def __init__(self, images_NHWC: Tensor, extractor: Extractor) -> None:
        self.extractor = extractor
        images = images_NHWC.permute(0, 3, 1, 2)  # still memory-mapped: all of them may not fit in memory
        self.images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        self.features = extractor(self.images).pooled
        self.mean_distance = real_distance(images_NHWC)
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
        """Plain values, without the picture."""
        return {
            "metric": self.metric,
            "score": self.score,
            "batch_score": self.batch_score,
            "copying": dataclasses.asdict(self.copying) | {"memorises": self.copying.memorises},
            "sample_distance": self.sample_distance,
            "compared": _COMPARED,
        }


def audit(generator: nn.Module, hp: HParams, scorer: Scorer, real: RealImages) -> Audit:
    """Audit a generator under a final protocol.

    Its score with running statistics is compared with that of the same noise with the statistics of each batch, which
    training uses: a gap means the running statistics do not match them. Samples are compared with all training images.
    """
    device = scorer.extractor.device
    both = (scorer, scorer.with_batch_statistics())
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
