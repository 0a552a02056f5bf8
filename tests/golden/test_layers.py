"""The layers at the networks' ends against PyTorch's own, results and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.baselines import Loop
from harness.gan.fast import layers, products
from harness.gan.fast.layers import (
    Adam,
    Down,
    FromImage,
    FromMaps,
    Projection,
    ToImage,
    ToLogit,
    ToMaps,
    Up,
    with_library_layers,
)
from harness.gan.hparams import HParams
from harness.gan.networks import build
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
    "down, leaving a row and a column out": (Down, nn.Conv2d, (6, 128, 4, 2, 0), (3, 6, 9, 7)),
    "down from maps of odd sides": (Down, nn.Conv2d, (6, 128, 4, 2, 1), (3, 6, 9, 7)),
    "up to maps of odd sides": (Up, nn.ConvTranspose2d, (128, 6, 4, 2, 1, 1), (3, 128, 4, 3)),
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


INNER = [case for case, (ours, *_) in CASES.items() if ours in (Down, Up)]


@pytest.mark.parametrize("chunk", [products._CHUNK_BYTES, 1, 3000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_pytorchs(case, bias, chunk, monkeypatch):
    monkeypatch.setattr(products, "_CHUNK_BYTES", chunk)
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


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("chosen", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1)])
@pytest.mark.parametrize("case", INNER)
def test_whatever_is_a_product_the_result_is_pytorchs(case, chosen, learns, monkeypatch):
    """Also where the processor, or the size of the maps, would not have it so."""
    down, up, weights = map(bool, chosen)
    monkeypatch.setattr(
        layers, "faster_as_matmul",
        lambda *a, doubles, learns: products.Products(down=down, up=up and doubles, weights=weights and learns),
    )  # fmt: skip
    ours, plain, arguments, shape = CASES[case]
    torch.manual_seed(0)
    reference = plain(*arguments, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    mine = ours(*arguments, dtype=torch.float64)
    mine.load_state_dict(reference.state_dict())
    found = []
    for layer in (mine, reference):
        layer.requires_grad_(learns).to(memory_format=torch.channels_last)
        y = layer(input_ := x.clone().requires_grad_())
        assert torch.equal(layer(x).detach(), y.detach()), "without gradients, the same"
        factor = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
        found.append([y, *torch.autograd.grad((y * factor).sum(), [input_, *(layer.parameters() if learns else ())])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", INNER)
def test_an_activation_may_change_a_products_maps_in_place(case, monkeypatch):
    every = products.Products(down=True, up=True, weights=True)
    monkeypatch.setattr(layers, "faster_as_matmul", lambda *a, doubles, learns: every._replace(up=doubles))
    ours, plain, arguments, shape = CASES[case]
    torch.manual_seed(0)
    reference = plain(*arguments, bias=False, dtype=torch.float64)
    mine = ours(*arguments, bias=False, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    weights = reference.state_dict()
    then = nn.LeakyReLU(0.2, inplace=True)
    found = outcome(nn.Sequential(mine, then), x, {f"0.{k}": v for k, v in weights.items()}, torch.enable_grad())
    expected = outcome(
        nn.Sequential(reference, then), x, {f"0.{k}": v for k, v in weights.items()}, torch.enable_grad()
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# What is a product for (dtype, AMX, channels of the smaller maps, their side, gradients of weights wanted).
@pytest.mark.parametrize(
    ("dtype", "amx", "channels", "side", "learns", "expected"),
    [
        (torch.float32, True, 512, 4, True, {"weights"}),
        (torch.float32, True, 512, 4, False, set()),
        (torch.float32, True, 512, 8, True, set()),
        (torch.bfloat16, False, 512, 8, True, {"weights"}),
        (torch.bfloat16, False, 256, 8, True, set()),
        (torch.bfloat16, False, 512, 4, False, set()),
        (torch.bfloat16, True, 512, 4, True, {"down", "up", "weights"}),
        (torch.bfloat16, True, 512, 4, False, {"down", "up"}),
        (torch.bfloat16, True, 128, 4, True, {"down", "weights"}),
        (torch.bfloat16, True, 256, 8, True, {"down", "weights"}),
        (torch.bfloat16, True, 256, 8, False, set()),
        (torch.bfloat16, True, 512, 16, True, set()),
    ],
)
def test_products_are_made_where_they_were_measured_to_be_sooner(
    dtype, amx, channels, side, learns, expected, monkeypatch
):
    monkeypatch.setattr(products, "has_amx", lambda: amx)
    weight = torch.empty(channels, 3, 4, 4, dtype=dtype)
    found = products.faster_as_matmul(weight, 64, 64 * side**2, doubles=True, learns=learns)
    assert {name for name, chosen in found._asdict().items() if chosen} == expected
    assert not products.faster_as_matmul(weight, 64, 64 * side**2, doubles=False, learns=learns).up


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


def test_linear_layers_take_and_give_maps_that_lie_in_memory_as_convolutions_do():
    units = torch.randn(3, 5 * 4 * 2, requires_grad=True)
    maps = ToMaps(1, (5, 4, 2))(units)
    assert torch.equal(maps, units.view(3, 5, 4, 2))
    assert maps.is_contiguous(memory_format=torch.channels_last)
    seen = []
    maps.register_hook(seen.append)
    back = FromMaps()(maps)
    assert torch.equal(back, units)
    factor = torch.randn(back.shape)
    (gradient,) = torch.autograd.grad((back * factor).sum(), units)
    assert torch.equal(gradient, factor)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_adam_is_pytorchs_bit_for_bit_and_copies_no_gradient(memory_format):
    torch.manual_seed(0)
    start = [torch.randn(6, 5, 4, 4).contiguous(memory_format=memory_format), torch.randn(6), torch.randn(6, 7)]
    gradients = [[torch.randn_like(each) for each in start] for _ in range(3)]
    ended = []
    for kind in (torch.optim.Adam, Adam):
        parameters = [nn.Parameter(each.clone()) for each in start]
        optimizer = kind(parameters, 1e-2, betas=(0.5, 0.9), weight_decay=0.1, fused=True)
        for each in gradients:
            for parameter, gradient in zip(parameters, each, strict=True):
                parameter.grad = gradient.clone()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                optimizer.step()
        states = [optimizer.state[parameter][name] for parameter in parameters for name in ("exp_avg", "exp_avg_sq")]
        ended.append([*parameters, *states])
    assert "aten::clone" not in {event.key for event in profile.key_averages()}
    for one, other in zip(*ended, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize("case", INNER)
def test_the_weights_gradient_is_a_product_where_maps_are_small_and_many(case, monkeypatch):
    made = []
    monkeypatch.setattr(products, "_patches", lambda *a, of=products._patches: made.append(a) or of(*a))
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


LINEAR = {ToMaps, FromMaps}


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        ({}, LINEAR),
        ({"kernel_g": 5}, {ToImage} | LINEAR),
        ({"kernel_d": 3}, {FromImage} | LINEAR),
        ({"strides_d": "1-2-2"}, {FromImage} | LINEAR),
        ({"ends": "linear"}, {Projection, ToLogit}),
    ],
)
def test_which_networks_have_them(change, plain):
    networks = build(HParams.from_params({"image_size": 32, "ngf": 4, "ndf": 4, **change}), 0, CPU)
    found = {type(module) for network in networks for module in network.modules()}
    assert {Projection, ToLogit, ToImage, FromImage, ToMaps, FromMaps, Down, Up} - found == plain
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
