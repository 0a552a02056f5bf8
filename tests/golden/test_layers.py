"""The layers at the networks' ends against PyTorch's own, results and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.baselines import Loop
from harness.gan import layers
from harness.gan.layers import Down, FromImage, Projection, ToImage, ToLogit, Up, with_library_layers
from harness.gan.networks import build
from harness.study.hparams import HParams
from tests.conftest import CPU

# (ours, PyTorch's, arguments, input shape)
CASES = {
    "projection": (Projection, nn.ConvTranspose2d, (7, 5, 4), (3, 7, 1, 1)),
    "projection to 2 px": (Projection, nn.ConvTranspose2d, (7, 5, 2), (3, 7, 1, 1)),
    "to a logit": (ToLogit, nn.Conv2d, (5, 1, 4), (3, 5, 4, 4)),
    "to a grey image": (ToImage, nn.ConvTranspose2d, (6, 1, 4, 2, 1), (5, 6, 8, 8)),
    "to a coloured image": (ToImage, nn.ConvTranspose2d, (6, 3, 4, 2, 1), (5, 6, 8, 6)),
    "from a grey image": (FromImage, nn.Conv2d, (1, 6, 4, 2, 1), (5, 1, 16, 16)),
    "from a coloured image": (FromImage, nn.Conv2d, (3, 6, 4, 2, 1), (5, 3, 16, 12)),
    "down to small maps": (Down, nn.Conv2d, (6, 128, 4, 2, 1), (3, 6, 8, 6)),
    "down by a kernel of 5": (Down, nn.Conv2d, (6, 128, 5, 2, 2), (3, 6, 8, 8)),
    "down by a kernel of 3, without stride": (Down, nn.Conv2d, (6, 128, 3, 1, 1), (3, 6, 4, 4)),
    "down to large maps": (Down, nn.Conv2d, (6, 5, 4, 2, 1), (3, 6, 16, 16)),
    "up from small maps": (Up, nn.ConvTranspose2d, (128, 6, 4, 2, 1), (3, 128, 4, 3)),
    "up by a kernel of 5": (Up, nn.ConvTranspose2d, (128, 6, 5, 2, 2, 1), (3, 128, 4, 4)),
    "up from large maps": (Up, nn.ConvTranspose2d, (5, 6, 4, 2, 1), (3, 5, 8, 8)),
}


def outcome(layer, x, weights, how):
    """Output and gradients for input and parameters, of a layer with these parameters."""
    layer = layer.to(memory_format=torch.channels_last)
    layer.load_state_dict(weights)
    x = x.clone(memory_format=torch.channels_last).requires_grad_()
    with how:
        y = layer(x)
    factor = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y, *torch.autograd.grad((y * factor).sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("chunk", [layers._CHUNK_BYTES, 1, 3000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_pytorchs(case, bias, chunk, monkeypatch):
    monkeypatch.setattr(layers, "_CHUNK_BYTES", chunk)
    ours, plain, arguments, shape = CASES[case]
    torch.manual_seed(0)
    reference = plain(*arguments, bias=bias, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    expected = outcome(reference, x, reference.state_dict(), torch.enable_grad())
    mine = ours(*arguments, bias=bias, dtype=torch.float64)
    found = outcome(mine, x, reference.state_dict(), torch.enable_grad())
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert found[0].is_contiguous(memory_format=torch.channels_last), "no layout that the next layer must change"


@pytest.mark.parametrize("case", CASES)
def test_autocast_reaches_them(case):
    ours, plain, arguments, shape = CASES[case]
    torch.manual_seed(0)
    reference = plain(*arguments)
    x = torch.randn(shape)
    exact = outcome(reference, x, reference.state_dict(), torch.enable_grad())
    found = outcome(ours(*arguments), x, reference.state_dict(), torch.autocast("cpu", torch.bfloat16))
    assert found[0].dtype == torch.bfloat16
    for one, other in zip(found, exact, strict=True):
        # bfloat16 keeps 8 bits; a sum of a hundred products of them keeps one or two less.
        torch.testing.assert_close(one.float(), other, rtol=0.03, atol=0.03 * float(other.detach().abs().max()))


@pytest.mark.parametrize("case", [case for case, (ours, *_) in CASES.items() if ours in (Down, Up)])
def test_the_weights_gradient_is_a_product_where_maps_are_small_and_many(case, monkeypatch):
    made = []
    monkeypatch.setattr(layers, "_patches", lambda *a, of=layers._patches: made.append(a) or of(*a))
    ours, _, arguments, shape = CASES[case]
    layer = ours(*arguments)
    layer(torch.randn(shape)).sum().backward()
    assert bool(made) == ("large" not in case)
    layer.requires_grad_(False)
    layer(torch.randn(shape).requires_grad_()).sum().backward()
    assert len(made) == ("large" not in case), "none is made where none is wanted"


def test_gradients_are_made_only_where_they_are_wanted():
    """The discriminator's own are switched off in the generator's update, and images need none in its own."""
    x = torch.randn(2, 3, 8, 8)
    layer = FromImage(3, 4, 4, 2, 1)
    layer(x).sum().backward()
    assert x.grad is None and layer.weight.grad is not None and layer.bias.grad is not None
    layer.zero_grad()
    layer.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None and layer.bias.grad is None


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        ({}, set()),
        ({"kernel_g": 5}, {ToImage}),
        ({"kernel_d": 3}, {FromImage}),
        ({"strides_d": "1-2-2"}, {FromImage}),
        ({"ends": "linear"}, {Projection, ToLogit}),
    ],
)
def test_which_networks_have_them(change, plain):
    networks = build(HParams.from_params({"image_size": 32, "ngf": 4, "ndf": 4, **change}), 0, CPU)
    found = {type(module) for network in networks for module in network.modules()}
    assert {Projection, ToLogit, ToImage, FromImage, Down, Up} - found == plain
    kept = {type(layer) for network in map(with_library_layers, networks) for layer in network.layers}
    assert {kind.__module__.partition(".")[0] for kind in kept} == {"torch"}


@pytest.mark.parametrize("style", ["write-up", "example"])
def test_the_loop_that_benchmarks_compare_with_is_all_pytorchs(style):
    loop = Loop(HParams(image_size=32, ngf=4, ndf=4, batch_size=4), style)
    for network in (loop.generator, loop.discriminator):
        assert {type(layer).__module__.partition(".")[0] for layer in network.layers} == {"torch"}
        assert all(parameter.is_contiguous() for parameter in network.parameters())
    loop.step(torch.zeros(4, 3, 32, 32))
    assert len(loop.losses) == 1
