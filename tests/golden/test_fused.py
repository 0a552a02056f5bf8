"""Trainings that step together give each member what it has alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.fused import FusedRuns
from harness.errors import Diverged, UsageError
from harness.gan.run import Run
from tests.conftest import CPU, blobs

OWN = [
    {"lr_g": 2e-4, "lr_d": 1e-3, "beta1": 0.5, "beta2": 0.999},
    {"lr_g": 3e-3, "lr_d": 2e-4, "beta1": 0.0, "beta2": 0.9},
    {"lr_g": 1e-3, "lr_d": 1e-4, "beta1": 0.9, "beta2": 0.99},
]


@pytest.fixture
def images():
    return torch.from_numpy(blobs(40))


def member(hp, images, index, *, double=True) -> Run:
    """In double precision, where rounding cannot hide a mistake; its draws are those of a training in float32."""
    run = Run(dataclasses.replace(hp, **OWN[index]), images, 10 + index, CPU)
    if double:
        pixels, draw_noise = run.pixels, run.draw_noise
        run.pixels, run.draw_noise = lambda *drawn: pixels(*drawn).double(), lambda n: draw_noise(n).double()
        run.generator.double()
        run.discriminator.double()
    return run


def assert_same(fused: Run, alone: Run, tolerance: float) -> None:
    for own in ("generator", "discriminator"):
        mine, theirs = getattr(fused, own).state_dict(), getattr(alone, own).state_dict()
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], rtol=tolerance, atol=tolerance, msg=f"{own}.{name}")
    torch.testing.assert_close(fused.window, alone.window, rtol=1e-5, atol=1e-5)
    for own in ("opt_g", "opt_d"):
        mine, theirs = getattr(fused, own).state_dict()["state"], getattr(alone, own).state_dict()["state"]
        assert mine.keys() == theirs.keys()
        for index, state in mine.items():
            for name, value in state.items():
                torch.testing.assert_close(value, theirs[index][name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"bn": "all", "activation_g": "leaky_relu", "flip": True, "label_smoothing": 0.1},
        {"bn": "none", "image_size": 32, "kernel_g": 5, "kernel_d": 3, "conv_bias_g": "always", "weight_decay": 1e-3},
    ],
)
def test_each_member_gets_what_it_gets_alone(hp, change):
    hp = dataclasses.replace(hp, **change)
    images = torch.from_numpy(blobs(40, hp.image_size))
    alone = [member(hp, images, index) for index in range(3)]
    fused = FusedRuns([member(hp, images, index) for index in range(3)])
    start = [run.generator.state_dict()["layers.0.weight"].clone() for run in alone]
    for _ in range(20):
        fused.advance()
        for run in alone:
            run.advance()
    for mine, theirs, before in zip(fused.members, alone, start, strict=True):
        assert_same(mine, theirs, 1e-9)
        assert float((theirs.generator.state_dict()["layers.0.weight"] - before).abs().max()) > theirs.hp.lr_g


def test_members_leave_and_go_on_alone(hp, images):
    """From a fused Snapshot, as from one of their own; and together again from there."""
    fused = FusedRuns([member(hp, images, index, double=False) for index in range(3)])
    for _ in range(4):
        fused.advance()
    states = [run.snapshot(None).state for run in fused.members]
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in states[0]["generator"].values())
    alone = [member(hp, images, index, double=False) for index in range(3)]
    together = [member(hp, images, index, double=False) for index in range(3)]
    for index, state in enumerate(states):
        alone[index].load(state)
        together[index].load(state)
    again = FusedRuns(together)
    for _ in range(3):
        again.advance()
        for run in alone:
            run.advance()
    for mine, theirs in zip(again.members, alone, strict=True):
        assert mine.step == theirs.step == 7
        assert_same(mine, theirs, 1e-5)


def test_a_member_that_diverges_stops_alone(hp, images):
    runs = [member(hp, images, index) for index in range(3)]
    draw = runs[1].draw_noise
    runs[1].draw_noise = lambda n: draw(n) * (torch.nan if runs[1].step == 3 else 1)
    fused, alone = FusedRuns(runs), [member(hp, images, index) for index in range(3)]
    for _ in range(5):
        fused.advance()
        for run in alone:
            run.advance()
    for index in (0, 2):
        assert_same(fused.members[index], alone[index], 1e-9)
        fused.members[index].check()
    with pytest.raises(Diverged, match="step 3"):
        fused.members[1].check()
    assert all(bool(torch.isfinite(p).all()) for p in fused.members[1].generator.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "fused trainings differ in batch_size"),
        ({"slope_d": 0.1, "bn_eps": 1e-3}, "differ in bn_eps, slope_d"),
    ],
)
def test_other_shapes_and_loops_are_refused(hp, images, change, message):
    runs = [member(hp, images, 0), member(dataclasses.replace(hp, **change), images, 1)]
    with pytest.raises(UsageError, match=message):
        FusedRuns(runs)
    with pytest.raises(UsageError, match="images of their own"):
        FusedRuns([member(hp, images, 0), member(hp, images.clone(), 1)])
    with pytest.raises(UsageError, match="d_step = 'split' cannot be fused"):
        FusedRuns([member(dataclasses.replace(hp, d_step="split"), images, 0)])
