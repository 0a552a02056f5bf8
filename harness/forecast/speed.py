"""How fast a study trains and scores on this machine, and how large its configurations are."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import torch
from optuna.samplers import RandomSampler
from torch import Tensor, nn

from harness.errors import Diverged
from harness.gan.architecture import problems
from harness.gan.fast.precision import FLOAT32
from harness.gan.hparams import HParams
from harness.gan.networks import build, make_networks
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress, train
from harness.home import Home
from harness.machine.processes import cuda_graphs
from harness.scoring.extractors import ON_GPU, Extractor, untrained_module
from harness.scoring.fidelity import calculated, versions
from harness.scoring.protocol import INCEPTION, MOBILENET, make_protocol
from harness.scoring.reference import Reference, frechet_distance
from harness.scoring.sampling import BATCH, generate
from harness.scoring.weights import OFFICIAL_NAME, cached_file
from harness.spec.resolved import ResolvedStudy, suggest
from harness.spec.tables import ScoreSpec
from harness.store.samplers import study_in_memory

# Steps of one configuration; the first is a warm-up.
_STEPS = 4
# Configurations drawn from the space, and seconds after which no new measurement starts.
_DRAWN, _ENOUGH_S = 4, 90.0
# At most this many rows of features to time scores with: more than features have columns (2,048).
_ROWS = 4096
# Features of an image, by extractor.
WIDTHS = {INCEPTION: 2048, MOBILENET: 1280}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationSpeed:
    """One configuration's speed of training and of generating, and the sizes of its files."""

    name: str
    s_per_kimg: float
    s_per_sample: float
    parameters: int
    checkpoint_bytes: int
    weights_bytes: int
    baseline: bool


def measure_configurations(spec: ResolvedStudy, images: Tensor, device: torch.device) -> Iterator[ConfigurationSpeed]:
    """Measure presets and random draws from the space while there is time; images are uint8 of shape NHWC."""
    started = time.perf_counter()
    study = study_in_memory(sampler=RandomSampler(seed=spec.sampler.seed))
    drawn = [(f"random {index + 1}", suggest(study.ask(), spec), False) for index in range(_DRAWN)]
    presets = [(p.name, spec.hparams(p.params, p.overrides), p.recipe is not None) for p in spec.presets]
    # In turn, so that both kinds are measured if time runs out.
    for name, hp, baseline in filter(None, chain.from_iterable(zip_longest(drawn, presets))):
        if time.perf_counter() - started > _ENOUGH_S:
            return
        result = measure_training(hp, images, device)
        # A training and its step (on CUDA a graph) refer to each other: free them, as workers do.
        gc.collect()
        if result:
            rate, snapshot = result
            with torch.device("meta"):
                networks = make_networks(hp)
            generator, _ = build(hp, 0, device)
            sample = partial(generate, generator, hp, BATCH, 0, device)
            sample()  # warms up
            yield ConfigurationSpeed(
                name=name,
                s_per_kimg=1000 / rate,
                s_per_sample=_seconds(sample) / BATCH,
                parameters=sum(tensor.numel() for network in networks for tensor in network.parameters()),
                checkpoint_bytes=tensor_bytes(snapshot.state),
                weights_bytes=tensor_bytes(snapshot.generator.state_dict()),
                baseline=baseline,
            )


def measure_training(hp: HParams, images: Tensor, device: torch.device) -> tuple[float, Snapshot] | None:
    """(images per second, last snapshot); None if the network is impossible, or diverges at once."""
    if problems(hp):
        return None
    step_kimg = hp.images_per_step / 1000
    budget = Budget(kimg=_STEPS * step_kimg, progress_kimg=step_kimg)
    try:
        events = list(train(hp, images, budget=budget, seed=0, device=device, graph=cuda_graphs()))
    except Diverged:
        return None
    rate = statistics.median([event.images_per_s for event in events if isinstance(event, Progress)][1:])
    return rate, next(event for event in reversed(events) if isinstance(event, Snapshot))


def tensor_bytes(state: Any) -> int:
    """Bytes of all tensors in nested mappings, lists and tuples."""
    if isinstance(state, Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(tensor_bytes(value) for value in values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTime:
    """Seconds of a rung score, a final score with all metrics, each further seed, and once of real images."""

    rung_s: float
    final_s: float
    again_s: float
    references_s: float


def features_of(score: ScoreSpec) -> tuple[str, str]:
    """(extractor, precision) of a score."""
    return score.extractor, score.precision or FLOAT32


def scoring_rates(spec: ResolvedStudy, device: torch.device) -> dict[tuple[str, str], float]:
    """Images per second of each (extractor, precision) of a study's scores, in the batches that workers use."""
    networks = sorted({features_of(spec.scoring.final), features_of(spec.scoring.rung)})
    size = spec.data.image_size
    return {each: 1 / _s_per_image(untrained_module(*each, device), size, device) for each in networks}


class _Untrained(Extractor):
    """An extractor without weights, to time what is done with its features."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.device, self.batch = device, BATCH
        self.pooled, self.logits = str(WIDTHS[name]), ""


def scoring_time(
    spec: ResolvedStudy, home: Home, rates: dict[tuple[str, str], float], s_per_sample: float, device: torch.device
) -> ScoringTime:
    """Seconds of generating, features and algebra, as measured here."""
    rung, final = spec.scoring.rung, spec.scoring.final

    def score_s(score: ScoreSpec, *, all_metrics: bool = False) -> float:
        images_s = score.samples * (1 / rates[features_of(score)] + s_per_sample)
        return images_s + _algebra_s(score, device, all_metrics=all_metrics)

    head_s = 0.0  # of MobileNetV2's Inception Score, if Inception's own head is missing
    if final.extractor == INCEPTION and not _has_head(home):
        module = untrained_module(MOBILENET, FLOAT32, device)
        module.features_list = ["logits"]
        head_s = final.samples * (_s_per_image(module, spec.data.image_size, device) + s_per_sample)
    references = {(features_of(s), s.n_reference, s.split) for s in (final, rung)}
    return ScoringTime(
        rung_s=score_s(rung) if spec.has_rungs else 0.0,
        final_s=score_s(final, all_metrics=True) + head_s,
        again_s=score_s(final) if (spec.scoring.sampling_seeds or 1) > 1 else 0.0,
        references_s=sum(n / rates[of] for of, n, _ in references),
    )


def _algebra_s(score: ScoreSpec, device: torch.device, *, all_metrics: bool) -> float:
    """Seconds from features to metrics, by the same functions, on random features."""
    extractor = _Untrained(score.extractor, device)
    n, n_real = min(score.samples, _ROWS), min(score.n_reference, _ROWS)
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
    # Each image is compared with all others, so time grows with the square.
    growth = ((score.samples + score.n_reference) / (n + n_real)) ** 2
    neighbours = ("precision", "recall")
    return seconds + growth * _seconds(lambda: calculated(pooled, reference, protocol, extractor, neighbours))


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
    """Whether Inception's classifier seems available, judged without fetching or reading it."""
    return "HARNESS_FID_WEIGHTS" in os.environ or cached_file(home, OFFICIAL_NAME) is not None
