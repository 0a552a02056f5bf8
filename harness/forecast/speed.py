"""How fast a study's configurations train on this machine, and how large they are."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from optuna.samplers import RandomSampler
from torch import Tensor

from harness.errors import Diverged
from harness.gan.architecture import problems
from harness.gan.hparams import HParams
from harness.gan.networks import build, make_networks
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress, train
from harness.machine.processes import cuda_graphs
from harness.scoring.sampling import BATCH, generate
from harness.spec.resolved import ResolvedStudy, suggest
from harness.store.samplers import study_in_memory

# Steps of one configuration: the first warms up and is not counted.
_STEPS = 4
# Configurations drawn from the space; no new measurement starts after this many seconds.
_DRAWN, _ENOUGH_S = 4, 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationSpeed:
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


def measure_configurations(spec: ResolvedStudy, images: Tensor, device: torch.device) -> Iterator[ConfigurationSpeed]:
    """Presets, and random draws from the space, as long as there is time; images are uint8 of shape NHWC."""
    started = time.perf_counter()
    study = study_in_memory(sampler=RandomSampler(seed=spec.sampler.seed))
    drawn = [(f"random {index + 1}", suggest(study.ask(), spec), False) for index in range(_DRAWN)]
    presets = [(p.name, spec.hparams(p.params, p.overrides), p.recipe is not None) for p in spec.presets]
    # In turn, so that both kinds are measured where time runs out.
    mixed = [pair for pairs in zip(drawn, presets, strict=False) for pair in pairs]
    rest = [item for item in (*presets, *drawn) if item not in mixed]
    for name, hp, baseline in (*mixed, *rest):
        if time.perf_counter() - started > _ENOUGH_S:
            return
        result = measure_training(hp, images, device)
        # A training and its step, on CUDA a graph, hold on to each other: no worker has several at once.
        gc.collect()
        if result:
            rate, snapshot = result
            yield ConfigurationSpeed(
                name=name,
                s_per_kimg=1000 / rate,
                s_per_sample=_sampling_s(hp, device),
                parameters=_parameters(hp),
                checkpoint_bytes=tensor_bytes(snapshot.state),
                weights_bytes=tensor_bytes(snapshot.generator.state_dict()),
                baseline=baseline,
            )


def measure_training(hp: HParams, images: Tensor, device: torch.device) -> tuple[float, Snapshot] | None:
    """(images per second, the state); None if there is no such network, or it diverges within the few steps."""
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


def _sampling_s(hp: HParams, device: torch.device) -> float:
    """Seconds to generate one image for scoring."""
    generator, _ = build(hp, 0, device)
    generate(generator, hp, BATCH, 0, device)
    started = time.perf_counter()
    generate(generator, hp, BATCH, 0, device)
    return (time.perf_counter() - started) / BATCH


def _parameters(hp: HParams) -> int:
    with torch.device("meta"):
        networks = make_networks(hp)
    return sum(parameter.numel() for network in networks for parameter in network.parameters())
