"""How long a study's scores take on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.gan.fast.precision import FLOAT32
from harness.home import Home
from harness.scoring.distance import frechet_distance
from harness.scoring.extractors import ON_GPU, Extractor, to_device, untrained_module
from harness.scoring.fidelity import calculated, versions
from harness.scoring.protocol import INCEPTION, MOBILENET, make_protocol
from harness.scoring.reference import Reference
from harness.scoring.sampling import BATCH
from harness.scoring.weights import OFFICIAL_NAME, vgg_file
from harness.spec.resolved import ResolvedStudy
from harness.spec.tables import ScoreSpec

# Rows of features that the algebra of scores is timed with, at most: more than features have columns (2,048).
_ROWS = 4096
# Features of an image.
WIDTHS = {INCEPTION: 2048, MOBILENET: 1280}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTime:
    """Seconds to score once: at a rung, at the end with all metrics, and with each further sampling seed.

    ``references_s`` is once for all trials: the features of the real images.
    """

    rung_s: float
    final_s: float
    again_s: float
    references_s: float


def feature_networks(spec: ResolvedStudy) -> list[tuple[str, str]]:
    """(extractor, precision) of the study's scores, each once."""
    return sorted({features_of(spec.scoring.final), features_of(spec.scoring.rung)})


def features_of(score: ScoreSpec) -> tuple[str, str]:
    """(extractor, precision) of a score."""
    return score.extractor, score.precision or FLOAT32


def scoring_rate(name: str, precision: str, size: int, device: torch.device) -> float:
    """Images per second, on a GPU in a worker's batches."""
    module = to_device(untrained_module(name, precision), name, precision, device)
    return 1 / _s_per_image(module, size, device)


class _Untrained(Extractor):
    """An extractor whose weights need not be fetched: for timing what is done with its features."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device, self.batch = name, device, BATCH
        self.pooled, self.logits = str(WIDTHS[name]), ""


def scoring_time(
    spec: ResolvedStudy, home: Home, rates: dict[tuple[str, str], float], s_per_sample: float, device: torch.device
) -> ScoringTime:
    """Generating, features and algebra, each as measured here."""
    rung, final = spec.scoring.rung, spec.scoring.final

    def images_s(score: ScoreSpec) -> float:
        return score.samples * (1 / rates[features_of(score)] + s_per_sample)

    head_s = 0.0  # MobileNetV2's Inception Score, needed while Inception's own head is not available
    if final.extractor == INCEPTION and not _has_head(home):
        head_s = final.samples * (_logits_s(spec.data.image_size, device) + s_per_sample)
    references = {(features_of(s), s.reference, s.split) for s in (final, rung)}
    return ScoringTime(
        rung_s=images_s(rung) + _algebra_s(rung, device, all_metrics=False) if spec.has_rungs else 0.0,
        final_s=images_s(final) + _algebra_s(final, device, all_metrics=True) + head_s,
        again_s=images_s(final) + _algebra_s(final, device, all_metrics=False)
        if (spec.scoring.sampling_seeds or 1) > 1
        else 0.0,
        references_s=sum(n / rates[of] for of, n, _ in references),
    )


def _algebra_s(score: ScoreSpec, device: torch.device, *, all_metrics: bool) -> float:
    """Seconds from features to one score's metrics, by the functions that compute them, on random features."""
    extractor = _Untrained(score.extractor, device)
    n, n_real = min(score.samples, _ROWS), min(score.reference, _ROWS)
    rng = torch.Generator().manual_seed(0)
    pooled, real = (torch.randn(rows, WIDTHS[score.extractor], generator=rng) for rows in (n, n_real))
    reference = Reference(real)
    if not all_metrics and score.metric == "fid":
        frechet_distance(pooled, reference, device)  # the reference computes its own statistics once
        return _seconds(lambda: frechet_distance(pooled, reference, device))
    protocol = make_protocol(
        score.model_copy(update={"samples": n, "reference": n_real}),
        weights_sha256="", fingerprint="", split_rule="", resize="", versions=versions(),
    )  # fmt: skip
    names = ("fid", "kid") if all_metrics else (score.metric,)
    seconds = _seconds(lambda: calculated(pooled, reference, protocol, extractor, names))
    if not all_metrics:
        return seconds
    # Each image is compared with all others: that grows with the square.
    growth = ((score.samples + score.reference) / (n + n_real)) ** 2
    neighbours = ("precision", "recall")
    return seconds + growth * _seconds(lambda: calculated(pooled, reference, protocol, extractor, neighbours))


def _logits_s(size: int, device: torch.device) -> float:
    module = untrained_module(MOBILENET).to(device)
    module.features_list = ["logits"]
    return _s_per_image(module, size, device)


def _s_per_image(module: nn.Module, size: int, device: torch.device) -> float:
    batch = torch.zeros(ON_GPU if device.type == "cuda" else BATCH, 3, size, size, dtype=torch.uint8, device=device)
    # A GPU's libraries choose their algorithms by the shape.
    first = batch if device.type == "cuda" else batch[:2]
    with torch.inference_mode():
        float(module(first)[0].sum())  # reading a value waits for the device
        return _seconds(lambda: float(module(batch)[0].sum())) / len(batch)


def _seconds(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def _has_head(home: Home) -> bool:
    """Whether Inception's own classifier is available, as far as one can tell without fetching or reading it."""
    folders = (Path(torch.hub.get_dir()) / "checkpoints", home.weights)
    return "HARNESS_FID_WEIGHTS" in os.environ or any((folder / OFFICIAL_NAME).is_file() for folder in folders)


def has_vgg(spec: ResolvedStudy, home: Home) -> bool:
    """Whether published precision and recall are computed too; that is not measured here."""
    return spec.scoring.final.extractor == INCEPTION and vgg_file(home) is not None
