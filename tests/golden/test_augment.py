"""Differentiable augmentation against the definitions of Zhao et al. (2020), written pixel by pixel."""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch

from harness.gan.augment import augmented
from harness.gan.hparams import DiffAugment, HParams, digest
from harness.gan.networks import build
from harness.gan.run import Run
from harness.scoring.sampling import samples
from tests.conftest import CPU

POLICIES = [policy for policy in get_args(DiffAugment) if policy != "none"]


def rng(seed=7):
    return torch.Generator().manual_seed(seed)


def by_definition(images_NCHW, policy, draws):
    """Each image, channel and pixel in turn, in float64; ``draws`` gives the random numbers in their order."""
    n, channels, size, _ = images_NCHW.shape
    x = images_NCHW.astype(np.float64).copy()
    if "color" in policy:
        brightness, saturation, contrast = torch.rand((3, n), generator=draws, dtype=torch.float64).tolist()
        for i in range(n):
            x[i] += brightness[i] - 0.5
            for row in range(size):
                for column in range(size):
                    grey = sum(x[i, c, row, column] for c in range(channels)) / channels
                    for c in range(channels):
                        x[i, c, row, column] = grey + 2 * saturation[i] * (x[i, c, row, column] - grey)
            mean = x[i].sum() / x[i].size
            x[i] = mean + (contrast[i] + 0.5) * (x[i] - mean)
    if "translation" in policy:
        reach = round(size * 0.125)
        down, right = (torch.randint(-reach, reach + 1, (n,), generator=draws).tolist() for _ in "yx")
        moved = np.zeros_like(x)
        for i in range(n):
            for row in range(size):
                for column in range(size):
                    source = row + down[i], column + right[i]
                    if 0 <= source[0] < size and 0 <= source[1] < size:
                        moved[i, :, row, column] = x[i, :, source[0], source[1]]
        x = moved
    if "cutout" in policy:
        side = size // 2
        tops, lefts = (torch.randint(0, size + 1 - side % 2, (n,), generator=draws).tolist() for _ in "yx")
        for i in range(n):
            for row in range(tops[i] - side // 2, tops[i] - side // 2 + side):
                for column in range(lefts[i] - side // 2, lefts[i] - side // 2 + side):
                    if 0 <= row < size and 0 <= column < size:
                        x[i, :, row, column] = 0
    return x


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_it_is_what_the_paper_defines(policy, channels):
    images = torch.rand((6, channels, 16, 16), generator=rng(1), dtype=torch.float64) * 2 - 1
    wanted = by_definition(images.numpy(), policy, rng())
    np.testing.assert_allclose(augmented(images, policy, rng()).numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
def test_its_gradient_is_that_of_the_function(policy):
    images = torch.rand((2, 3, 8, 8), generator=rng(1), dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: augmented(x, policy, rng()), (images,))


def test_its_ranges_are_reached_and_not_exceeded():
    """A single bright pixel shows the translation, a hole the cutout, a constant image the brightness."""
    n, size = 4000, 32
    dot = torch.zeros((n, 1, size, size))
    dot[:, :, 16, 16] = 1.0
    rows, columns = augmented(dot, "translation", rng()).squeeze(1).nonzero()[:, 1:].T
    assert len(rows) == n
    assert {*rows.tolist()} == {*columns.tolist()} == set(range(12, 21))
    holes = (augmented(torch.ones((n, 1, size, size)), "cutout", rng()) == 0).sum((1, 2, 3))
    assert (int(holes.min()), int(holes.max())) == (8 * 8, 16 * 16)
    bright = augmented(torch.zeros((n, 3, 2, 2)), "color", rng()).mean((1, 2, 3))
    assert -0.5 <= float(bright.min()) < -0.49
    assert 0.49 < float(bright.max()) <= 0.5


def test_none_draws_nothing_and_half_precision_becomes_single():
    images, own = torch.rand((2, 3, 8, 8)), rng()
    before = own.get_state()
    assert augmented(images, "none", own) is images
    assert torch.equal(own.get_state(), before)
    half = augmented(images.bfloat16(), "color,translation,cutout", own)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, augmented(images, "color,translation,cutout", rng()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("d_step", ["joint", "split"])
def test_real_and_fake_pass_through_it_in_both_updates(hp, images, d_step):
    """A hole in all that the discriminator sees, another one for each image; none in what is real or generated."""
    run = Run(dataclasses.replace(hp, diffaugment="cutout", d_step=d_step), images, 0, CPU)
    seen, drawn = [], []
    run.discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    run.generator.register_forward_hook(lambda _, given, made: drawn.append(made.detach()))
    run.advance()
    assert len(seen) == 3, "real, fake, and the generator's update"
    for batch in seen:
        holes = (batch == 0).sum((1, 2, 3))
        assert int(holes.min()) >= 4 * 4
    assert len({tuple((batch[0] == 0).flatten().tolist()) for batch in seen}) == 3
    assert not any((batch == 0).any() for batch in drawn)


def test_samples_and_scores_never_pass_through_it(hp):
    generator, _ = build(hp, 0, CPU)
    plain, _ = samples(generator, hp, 20, 0, CPU)
    augmenting, _ = samples(generator, dataclasses.replace(hp, diffaugment="color,cutout"), 20, 0, CPU)
    assert torch.equal(plain, augmenting)


def test_digests_of_configurations_without_it_are_what_they_were():
    assert digest(HParams().to_dict()) == "ffbcb85f4789bc02"
    assert "diffaugment" not in HParams().to_dict()
    augmenting = HParams(diffaugment="color")
    assert augmenting.to_dict()["diffaugment"] == "color"
    assert HParams.from_stored(augmenting.to_dict(), "a test") == augmenting
    assert HParams.from_stored(HParams().to_dict(), "a test") == HParams()
