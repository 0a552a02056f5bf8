"""Generator and discriminator of Radford et al. (2016), for images of 16 to 256 px.

``z`` becomes a 4x4 map, and stride-2 transposed convolutions double it up to the image (section 3 and figure 1); the
discriminator mirrors it. Widths halve from block to block down to ``ngf`` and up from ``ndf``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from harness.study.hparams import HParams

LATENT_LAWS = ("normal", "uniform")


def latent_noise(shape: tuple[int, ...], law: str, generator: torch.Generator) -> Tensor:
    """Draw z: N(0, 1) for ``normal``, U(-1, 1) for ``uniform``, on the generator's device."""
    if law == "normal":
        return torch.randn(shape, generator=generator, device=generator.device)
    return torch.rand(shape, generator=generator, device=generator.device).mul_(2).sub_(1)


def _activation(name: str, slope: float) -> nn.Module:
    return nn.LeakyReLU(slope, inplace=True) if name == "leaky_relu" else nn.ReLU(inplace=True)


def _has_bias(hp: HParams, normalised: bool) -> bool:
    return {"auto": not normalised, "never": False, "always": True}[hp.conv_bias]


def _halvings(hp: HParams) -> int:
    """Stride-2 steps between the image and the 4x4 map."""
    return int(math.log2(hp.image_size)) - 2


class Generator(nn.Module):
    """``z`` of shape (N, z_dim) to images of shape (N, channels, image_size, image_size) in [-1, 1]."""

    def __init__(self, hp: HParams) -> None:
        super().__init__()
        inside, outside = hp.bn in ("generator", "paper", "all"), hp.bn == "all"
        steps = _halvings(hp)
        width = hp.ngf * 2 ** (steps - 1)
        layers: list[nn.Module] = [nn.ConvTranspose2d(hp.z_dim, width, 4, bias=_has_bias(hp, inside))]
        layers += [nn.BatchNorm2d(width)] if inside else []
        layers += [_activation(hp.activation_g, hp.slope_g)]
        padding, output_padding = {3: (1, 1), 4: (1, 0), 5: (2, 1)}[hp.kernel_size]
        for step in range(steps):
            last = step == steps - 1
            narrower = hp.channels if last else width // 2
            normalised = outside if last else inside
            layers.append(
                nn.ConvTranspose2d(
                    width, narrower, hp.kernel_size, 2, padding, output_padding, bias=_has_bias(hp, normalised)
                )
            )
            layers += [nn.BatchNorm2d(narrower)] if normalised else []
            layers.append(nn.Tanh() if last else _activation(hp.activation_g, hp.slope_g))
            width = narrower
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.layers(z[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """Images of shape (N, channels, image_size, image_size) in [-1, 1] to logits of shape (N,)."""

    def __init__(self, hp: HParams) -> None:
        super().__init__()
        inside, outside = hp.bn in ("discriminator", "paper", "all"), hp.bn == "all"
        padding = {3: 1, 4: 1, 5: 2}[hp.kernel_size]
        layers: list[nn.Module] = []
        width = hp.channels
        for step in range(_halvings(hp)):
            wider = hp.ndf if step == 0 else width * 2
            normalised = outside if step == 0 else inside
            layers.append(nn.Conv2d(width, wider, hp.kernel_size, 2, padding, bias=_has_bias(hp, normalised)))
            layers += [nn.BatchNorm2d(wider)] if normalised else []
            layers.append(_activation(hp.activation_d, hp.slope_d))
            width = wider
        layers.append(nn.Conv2d(width, 1, 4, bias=_has_bias(hp, False)))
        self.layers = nn.Sequential(*layers)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.layers(images_BCHW)
        return logits.flatten()


def initialise(network: nn.Module, hp: HParams, generator: torch.Generator) -> None:
    """Fill all weights in place, from ``generator`` alone.

    ``normal``: convolutions N(0, init_std), BatchNorm scales N(1, init_std), every bias 0 (Radford et al., section 4).
    ``default``: PyTorch's own law, Kaiming uniform with a = sqrt(5).
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                if hp.init == "normal":
                    nn.init.normal_(module.weight, 0.0, hp.init_std, generator=generator)
                else:
                    nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
                if module.bias is not None:
                    bound = 0.0 if hp.init == "normal" else 1 / math.sqrt(module.weight[0].numel())
                    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
            elif isinstance(module, nn.BatchNorm2d) and hp.init == "normal":
                nn.init.normal_(module.weight, 1.0, hp.init_std, generator=generator)


def build(hp: HParams, seed: int, device: torch.device) -> tuple[Generator, Discriminator]:
    """Both networks, seeded, in channels-last memory format on ``device``.

    The weights are drawn on the CPU, so that one seed gives the same start on every device.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are overwritten at once
        networks = Generator(hp), Discriminator(hp)
    for network in networks:
        initialise(network, hp, rng)
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return networks


def pure(network: nn.Module) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """The network as a function of (state, input), without state of its own.

    ``state`` maps the names of ``network.state_dict()`` to tensors. BatchNorm in training mode updates its running
    statistics in the tensors that it is given.
    """

    def apply(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(network, dict(state), (x,))
        return output

    return apply
