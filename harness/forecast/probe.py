"""How fast and how large a study's configurations and scores are on this machine, by trying them."""

from __future__ import annotations

import gc
import io
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.samplers import RandomSampler
from PIL import Image
from torch import Tensor, nn

from harness.errors import Diverged
from harness.gan.architecture import problems
from harness.gan.fast.precision import FLOAT32
from harness.gan.hparams import HParams
from harness.gan.networks import Discriminator, Generator, build
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress, train
from harness.home import Home
from harness.machine.processes import cuda_graphs
from harness.scoring.distance import frechet_distance
from harness.scoring.extractors import ON_GPU, Extractor, to_device, untrained_module
from harness.scoring.fidelity import calculated, versions
from harness.scoring.protocol import INCEPTION, MOBILENET, make_protocol
from harness.scoring.reference import Reference
from harness.scoring.sampling import BATCH, GRID_IMAGES, generate, image_grid
from harness.scoring.weights import OFFICIAL_NAME, vgg_file
from harness.spec.resolved import ResolvedStudy
from harness.spec.scoring import ScoreSpec
from harness.spec.suggest import suggest
from harness.store.samplers import study_in_memory

# Steps of one configuration: the first warms up and is not counted.
_STEPS = 4
# Configurations drawn from the space, and no new measurement after so many seconds.
_DRAWN, _ENOUGH_S = 4, 90.0
# Rows of features that the algebra of scores is timed with, at most: more than features have columns (2,048).
_ROWS = 4096
# Features of an image.
WIDTHS = {INCEPTION: 2048, MOBILENET: 1280}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One configuration's speed and size. ``s_per_kimg`` is of training, ``s_per_sample`` of generating, alone.

    ``checkpoint_bytes`` is of a whole snapshot, ``weights_bytes`` of the published generator.
    """

    name: str
    s_per_kimg: float
    s_per_sample: float
    parameters: int
    checkpoint_bytes: int
    weights_bytes: int
    baseline: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTime:
    """Seconds to score once: at a rung, at the end with all metrics, and with each further sampling seed.

    ``references_s`` is once for all trials: the features of the real images.
    """

    rung_s: float
    final_s: float
    again_s: float
    references_s: float


def configurations(spec: ResolvedStudy, images: Tensor, place: torch.device) -> Iterator[Measured]:
    """Presets, and random draws from the space, as long as there is time."""
    started = time.perf_counter()
    study = study_in_memory(sampler=RandomSampler(seed=spec.sampler.seed))
    drawn = [(f"random {index + 1}", suggest(study.ask(), spec), False) for index in range(_DRAWN)]
    presets = [(p.name, spec.hparams(p.params, p.overrides), p.recipe is not None) for p in spec.presets]
    # In turn, so that both kinds are among the measured ones where time runs out.
    mixed = [pair for pairs in zip(drawn, presets, strict=False) for pair in pairs]
    rest = [item for item in (*presets, *drawn) if item not in mixed]
    for name, hp, baseline in (*mixed, *rest):
        if time.perf_counter() - started > _ENOUGH_S:
            return
        found = _training(hp, images, place)
        # A training and its step, on CUDA a graph, hold on to each other: no worker has several at once.
        gc.collect()
        if found:
            rate, snapshot = found
            yield Measured(
                name=name,
                s_per_kimg=1000 / rate,
                s_per_sample=_sampling_s(hp, place),
                parameters=_parameters(hp),
                checkpoint_bytes=_tensor_bytes(snapshot.state),
                weights_bytes=_tensor_bytes(snapshot.generator.state_dict()),
                baseline=baseline,
            )


def _training(hp: HParams, images: Tensor, place: torch.device) -> tuple[float, Snapshot] | None:
    """(images per second, the state); None where there is no such network, or it diverges within the few steps."""
    if problems(hp):
        return None
    step_kimg = hp.images_per_step / 1000
    budget = Budget(kimg=_STEPS * step_kimg, progress_kimg=step_kimg)
    try:
        events = list(train(hp, images, budget=budget, seed=0, device=place, graph=cuda_graphs()))
    except Diverged:
        return None
    rate = statistics.median([event.images_per_s for event in events if isinstance(event, Progress)][1:])
    return rate, next(event for event in reversed(events) if isinstance(event, Snapshot))


def _tensor_bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(_tensor_bytes(value) for value in values)


def _sampling_s(hp: HParams, place: torch.device) -> float:
    """Seconds to generate one image for scoring."""
    generator, _ = build(hp, 0, place)
    generate(generator, hp, BATCH, 0, place)
    started = time.perf_counter()
    generate(generator, hp, BATCH, 0, place)
    return (time.perf_counter() - started) / BATCH


def _parameters(hp: HParams) -> int:
    with torch.device("meta"):
        networks = Generator(hp), Discriminator(hp)
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def extractors(spec: ResolvedStudy) -> list[tuple[str, str]]:
    return sorted({kind(spec.scoring.final), kind(spec.scoring.rung)})


def kind(score: ScoreSpec) -> tuple[str, str]:
    return score.extractor, score.precision or FLOAT32


def scoring_rate(name: str, precision: str, size: int, place: torch.device) -> float:
    """Images a second, on a GPU in a worker's batches."""
    module = to_device(untrained_module(name, precision), name, precision, place)
    return 1 / _s_per_image(module, size, place)


class _Untrained(Extractor):
    """An extractor whose weights need not be fetched: for timing what is done with its features."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device, self.batch = name, device, BATCH
        self.pooled, self.logits = str(WIDTHS[name]), ""


def scoring_time(
    spec: ResolvedStudy, home: Home, rates: dict[tuple[str, str], float], s_per_sample: float, place: torch.device
) -> ScoringTime:
    """Generating, features and algebra, each as measured here."""
    rung, final = spec.scoring.rung, spec.scoring.final

    def images_s(score: ScoreSpec) -> float:
        return score.samples * (1 / rates[kind(score)] + s_per_sample)

    beside_s = 0.0  # MobileNetV2's Inception Score, where Inception's own head is not at hand
    if final.extractor == INCEPTION and not _has_head(home):
        beside_s = final.samples * (_logits_s(spec.data.image_size, place) + s_per_sample)
    references = {(kind(s), s.reference, s.split) for s in (final, rung)}
    return ScoringTime(
        rung_s=images_s(rung) + _algebra_s(rung, place, all_metrics=False) if spec.has_rungs else 0.0,
        final_s=images_s(final) + _algebra_s(final, place, all_metrics=True) + beside_s,
        again_s=images_s(final) + _algebra_s(final, place, all_metrics=False)
        if (spec.scoring.sampling_seeds or 1) > 1
        else 0.0,
        references_s=sum(n / rates[of] for of, n, _ in references),
    )


def _algebra_s(score: ScoreSpec, place: torch.device, *, all_metrics: bool) -> float:
    """Seconds from features to one score's metrics, by the functions that compute them, on random features."""
    extractor = _Untrained(score.extractor, place)
    n, n_real = min(score.samples, _ROWS), min(score.reference, _ROWS)
    rng = torch.Generator().manual_seed(0)
    pooled, real = (torch.randn(rows, WIDTHS[score.extractor], generator=rng) for rows in (n, n_real))
    reference = Reference(real)
    if not all_metrics and score.metric == "fid":
        frechet_distance(pooled, reference, place)  # the reference's own statistics are found once
        return _seconds(lambda: frechet_distance(pooled, reference, place))
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


def _logits_s(size: int, place: torch.device) -> float:
    module = untrained_module(MOBILENET).to(place)
    module.features_list = ["logits"]
    return _s_per_image(module, size, place)


def _s_per_image(module: nn.Module, size: int, place: torch.device) -> float:
    batch = torch.zeros(ON_GPU if place.type == "cuda" else BATCH, 3, size, size, dtype=torch.uint8, device=place)
    # A GPU's libraries choose their algorithms by the shape.
    first = batch if place.type == "cuda" else batch[:2]
    with torch.inference_mode():
        float(module(first)[0].sum())  # reading a value waits for the device
        return _seconds(lambda: float(module(batch)[0].sum())) / len(batch)


def _seconds(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def _has_head(home: Home) -> bool:
    """Whether Inception's own classifier is at hand, as far as one can tell without fetching or reading it."""
    places = (Path(torch.hub.get_dir()) / "checkpoints", home.weights)
    return "HARNESS_FID_WEIGHTS" in os.environ or any((folder / OFFICIAL_NAME).is_file() for folder in places)


def grid_bytes(images_NHWC: Tensor) -> int:
    """Of a PNG of real images, which compress about as samples do."""
    shown = images_NHWC[:GRID_IMAGES].permute(0, 3, 1, 2).cpu().float().div(127.5).sub(1)
    buffer = io.BytesIO()
    Image.fromarray(image_grid(shown)).save(buffer, "png")
    return len(buffer.getvalue()) * GRID_IMAGES // len(shown)


def peak_bytes(place: torch.device) -> int:
    if place.type == "cuda":
        return int(torch.cuda.max_memory_reserved())  # graphs hold some that nothing else can have
    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def has_vgg(spec: ResolvedStudy, home: Home) -> bool:
    """Whether published precision and recall are computed too; that is not measured here."""
    return spec.scoring.final.extractor == INCEPTION and vgg_file(home) is not None
