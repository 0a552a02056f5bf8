"""What must hold on CUDA as on the CPU. Skipped, saying so, where there is none."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress, train
from harness.scoring.extractors import Extractor
from harness.sweep.processes import exact_arithmetic
from tests.conftest import CPU

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
CUDA = torch.device("cuda")
BUDGET = Budget(kimg=0.4, snapshots_kimg=(0.2,))


def run(hp, images, device, **arguments):
    return list(train(hp, images.to(device), budget=BUDGET, seed=0, device=device, **arguments))


def test_same_seed_starts_from_the_cpus_weights_and_trains_alike(hp, images):
    """Noise differs between devices, so only statistics can be compared."""
    curves = [[e.curve["loss_d"] for e in run(hp, images, d) if isinstance(e, Progress)] for d in (CUDA, CPU)]
    assert sum(curves[0]) == pytest.approx(sum(curves[1]), rel=0.25)


def test_resuming_continues_the_same_run(hp, images):
    hp = dataclasses.replace(hp, ema=0.9)
    whole = [event for event in run(hp, images, CUDA) if isinstance(event, Snapshot)]
    resumed = [event for event in run(hp, images, CUDA, resume=whole[0].state) if isinstance(event, Snapshot)]
    for name, value in whole[-1].state["generator"].items():
        torch.testing.assert_close(resumed[-1].state["generator"][name], value, rtol=1e-3, atol=1e-4)


def test_features_equal_the_cpus(home):
    exact_arithmetic()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    on = [Extractor("inception-v3", home, device, print)([images]).pooled for device in (CUDA, CPU)]
    torch.testing.assert_close(on[0], on[1], rtol=1e-3, atol=1e-4)
