"""The networks and losses against hand-written NumPy, and against published parameter counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call

from harness.gan.fast.layers import with_library_layers
from harness.gan.hparams import HParams
from harness.gan.networks import Discriminator, Generator, build, fake_loss, generator_loss, real_loss
from tests.conftest import CPU


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_of_the_pytorch_dcgan_example():
    """ngf = ndf = 64, 64 px, colour, z 100, no biases: 3,576,704 and 2,765,568."""
    hp = HParams.from_params({"image_size": 64, "conv_bias": "never"})
    assert count(Generator(hp)) == 3_576_704
    assert count(Discriminator(hp)) == 2_765_568


def test_parameter_count_of_the_papers_generator_by_hand():
    """Radford et al., figure 1: 100 -> 1024x4x4 -> 512 -> 256 -> 128 -> 3, kernels 5."""
    hp = HParams(image_size=64, ngf=128, kernel_g=5, conv_bias_g="never")
    widths = [1024, 512, 256, 128]
    expected = (
        100 * 1024 * 16 + sum(a * b * 25 for a, b in zip(widths, [*widths[1:], 3], strict=True)) + 2 * sum(widths)
    )
    assert count(Generator(hp)) == expected


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_shapes(size, channels, kernel):
    hp = HParams(image_size=size, channels=channels, kernel_g=kernel, kernel_d=kernel, ngf=2, ndf=2, z_dim=5)
    generator, discriminator = build(hp, 0, CPU)
    fake = generator(torch.zeros(2, 5))
    assert fake.shape == (2, channels, size, size)
    assert discriminator(fake).shape == (2,)


@pytest.mark.parametrize(
    ("bn", "in_g", "in_d"),
    [("none", 0, 0), ("generator", 3, 0), ("discriminator", 0, 2), ("paper", 3, 2), ("all", 4, 3)],
)
def test_batch_norm_placements(bn, in_g, in_d):
    hp = HParams(image_size=32, ngf=2, ndf=2, bn=bn)
    for network, expected in ((Generator(hp), in_g), (Discriminator(hp), in_d)):
        found = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert len(found) == expected
        biases = [
            m.bias is not None for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
        ]
        assert sum(biases) == len(biases) - expected, "a bias exactly where no BatchNorm follows"


def test_initial_weights():
    hp = HParams(image_size=32)
    generator, discriminator = build(hp, 0, CPU)
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d) and module.weight.numel() > 5000:
                assert float(module.weight.std()) == pytest.approx(0.02, rel=0.05)
            if isinstance(module, torch.nn.BatchNorm2d):
                assert float(module.weight.mean()) == pytest.approx(1.0, abs=0.01)
                assert float(module.bias.abs().max()) == 0.0
    default, _ = build(HParams(image_size=32, init="default"), 0, CPU)
    reference = torch.nn.ConvTranspose2d(256, 128, 4, 2, 1)
    assert float(default.layers[3].weight.std()) == pytest.approx(float(reference.weight.std()), rel=0.02)


def conv_transpose(x, weight, stride, padding):
    """NCHW, weight (in, out, k, k), by scattering each input pixel's contribution."""
    n, _, h, w = x.shape
    out_channels, k = weight.shape[1], weight.shape[2]
    full = np.zeros((n, out_channels, (h - 1) * stride + k, (w - 1) * stride + k))
    for i in range(h):
        for j in range(w):
            full[:, :, i * stride : i * stride + k, j * stride : j * stride + k] += np.einsum(
                "ni,iokl->nokl", x[:, :, i, j], weight
            )
    return full[:, :, padding : full.shape[2] - padding, padding : full.shape[3] - padding]


def conv(x, weight, stride, padding):
    n, _, _, _ = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    k = weight.shape[2]
    size = (padded.shape[2] - k) // stride + 1
    out = np.zeros((n, weight.shape[0], size, size))
    for i in range(size):
        for j in range(size):
            patch = padded[:, :, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, :, i, j] = np.einsum("nikl,oikl->no", patch, weight)
    return out


def batch_norm(x, scale, shift):
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * scale[:, None, None] + shift[:, None, None]


def leaky(x, slope):
    return np.where(x > 0, x, slope * x)


@pytest.mark.parametrize("as_function", [False, True])
def test_forward_passes_equal_numpy(as_function):
    hp = HParams(image_size=16, channels=2, ngf=3, ndf=3, z_dim=4, activation_g="leaky_relu", slope_g=0.1)
    generator, discriminator = (network.double() for network in build(hp, 1, CPU))
    z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = z.numpy()[:, :, None, None]
    g = {name: value.detach().numpy().copy() for name, value in generator.state_dict().items()}
    x = leaky(batch_norm(conv_transpose(x, g["layers.0.weight"], 1, 0), g["layers.1.weight"], g["layers.1.bias"]), 0.1)
    x = leaky(batch_norm(conv_transpose(x, g["layers.3.weight"], 2, 1), g["layers.4.weight"], g["layers.4.bias"]), 0.1)
    expected = np.tanh(conv_transpose(x, g["layers.6.weight"], 2, 1) + g["layers.6.bias"][:, None, None])
    fake = functional_call(generator, generator.state_dict(), (z,)) if as_function else generator(z)
    np.testing.assert_allclose(fake.detach().numpy(), expected, atol=1e-12)

    d = {name: value.detach().numpy().copy() for name, value in discriminator.state_dict().items()}
    y = leaky(conv(expected, d["layers.0.weight"], 2, 1) + d["layers.0.bias"][:, None, None], 0.2)
    y = leaky(batch_norm(conv(y, d["layers.2.weight"], 2, 1), d["layers.3.weight"], d["layers.3.bias"]), 0.2)
    expected_logits = conv(y, d["layers.5.weight"], 1, 0).reshape(5) + d["layers.5.bias"]
    images = torch.from_numpy(expected)
    logits = (
        functional_call(discriminator, discriminator.state_dict(), (images,)) if as_function else discriminator(images)
    )
    np.testing.assert_allclose(logits.detach().numpy(), expected_logits, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_equal_numpy(smoothing):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=7) * 5, rng.normal(size=7) * 5

    def bce(logits, label):
        p = 1 / (1 + np.exp(-logits))
        return -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean()

    r, f = torch.from_numpy(real), torch.from_numpy(fake)
    expected = bce(real, 1 - smoothing) + bce(fake, 0)
    assert float(real_loss(r, smoothing) + fake_loss(f)) == pytest.approx(expected, rel=1e-12)
    assert float(generator_loss(f)) == pytest.approx(bce(fake, 1), rel=1e-12)


def test_losses_stay_finite_for_huge_logits():
    huge = torch.tensor([1e4, -1e4])
    assert torch.isfinite(real_loss(huge, 0.1) + fake_loss(huge))
    assert torch.isfinite(generator_loss(huge))


def test_training_equals_a_plain_loop():
    """Three steps of the trainer against the loop of a tutorial: same images, same noise, BCE-with-logits, Adam."""
    from harness.gan.hparams import derive_seed
    from harness.gan.networks import latent_noise
    from harness.gan.run import Run
    from tests.conftest import blobs

    hp = HParams(image_size=16, channels=1, ngf=4, ndf=4, z_dim=8, batch_size=8, label_smoothing=0.1)
    images = torch.from_numpy(blobs(32))
    run = Run(hp, images, 0, CPU)
    generator, discriminator = (
        with_library_layers(network).to(memory_format=torch.contiguous_format)
        for network in build(hp, derive_seed(0, "weights"), CPU)
    )
    opt_g = torch.optim.Adam(generator.parameters(), hp.lr_g, (hp.beta1, hp.beta2))
    opt_d = torch.optim.Adam(discriminator.parameters(), hp.lr_d, (hp.beta1, hp.beta2))
    bce = torch.nn.BCEWithLogitsLoss()
    noise = torch.Generator().manual_seed(derive_seed(0, "noise"))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(derive_seed(0, "order")))
    for step in range(3):
        run.advance()
        real = images[order[step * 8 : step * 8 + 8]].permute(0, 3, 1, 2).float() / 127.5 - 1
        fake = generator(latent_noise((8, 8), "normal", noise))
        opt_d.zero_grad()
        (bce(discriminator(real), torch.full((8,), 0.9)) + bce(discriminator(fake.detach()), torch.zeros(8))).backward()
        opt_d.step()
        opt_g.zero_grad()
        bce(discriminator(fake), torch.ones(8)).backward()
        opt_g.step()
    for ours, plain in ((run.generator, generator), (run.discriminator, discriminator)):
        for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
