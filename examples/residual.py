"""Networks of your own: a residual generator, and a residual discriminator with spectral normalisation.

After Gulrajani et al. (2017) and Miyato et al. (2018), narrow enough for a CPU. A study names the function::

    network = "examples.residual:networks"

It is called with the trial's hyperparameters and the shape of an image, and returns generator and discriminator. What
the trial searches as well (learning rates, betas, batch size, …) works as with the DCGAN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from harness.gan.hparams import HParams


class Up(nn.Module):
    """A residual block that doubles the side of its maps."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.interpolate(F.relu(self.bn1(x)), scale_factor=2))
        return self.conv2(F.relu(self.bn2(h))) + self.skip(F.interpolate(x, scale_factor=2))


class Down(nn.Module):
    """A residual block that halves the side of its maps."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = spectral_norm(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(F.relu(x))))
        return F.avg_pool2d(h + self.skip(x), 2)


class Generator(nn.Module):
    """z of shape (N, z_dim) to images of shape (N, C, H, W) in [-1, 1]."""

    def __init__(self, z_dim: int, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, side, _ = image_shape
        doublings = int(math.log2(side // 4))
        self.start = nn.Linear(z_dim, width * 16)
        self.maps = nn.Unflatten(1, (width, 4, 4))
        self.blocks = nn.Sequential(*(Up(width, width) for _ in range(doublings)))
        self.end = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.end(self.blocks(self.maps(self.start(z))))
        return images


class Discriminator(nn.Module):
    """Images of shape (N, C, H, W) to logits of shape (N,)."""

    def __init__(self, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, side, _ = image_shape
        halvings = int(math.log2(side // 4))
        self.blocks = nn.Sequential(*(Down(width if step else channels, width) for step in range(halvings)))
        self.end = spectral_norm(nn.Linear(width, 1))

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.blocks(images))
        return self.end(maps.sum((2, 3))).flatten()


def networks(hp: HParams, image_shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
    """A generator and a discriminator of about the widths that ``ngf`` and ``ndf`` name."""
    generator = Generator(hp.z_dim, 4 * hp.ngf, image_shape)
    discriminator = Discriminator(4 * hp.ndf, image_shape)
    for module in (*generator.modules(), *discriminator.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.parametrizations.weight.original if hasattr(module, "parametrizations") else module.weight
            nn.init.xavier_uniform_(weight, math.sqrt(2))
    return generator, discriminator


if __name__ == "__main__":
    generator, discriminator = networks(HParams(ngf=8, ndf=8), (3, 32, 32))
    images = generator(torch.randn(2, 100))
    print(tuple(images.shape), tuple(discriminator(images).shape))  # noqa: T201
