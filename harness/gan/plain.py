"""Both networks in PyTorch's own layers, for exchange formats and for programs without the harness."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from harness.gan.fast.layers import with_library_layers
from harness.gan.hparams import HParams
from harness.gan.networks import Discriminator, Generator
from harness.gan.registry import DCGAN

# The arguments that make each kind of layer again.
_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ConvTranspose2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding"),
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    nn.Linear: ("in_features", "out_features"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum"),
    nn.LeakyReLU: ("negative_slope",),
    nn.ReLU: (),
    nn.Tanh: (),
    nn.Unflatten: ("dim", "unflattened_size"),
    nn.Flatten: (),
}


def plain(network: Generator | Discriminator) -> nn.Sequential:
    """A copy as a plain ``torch.nn.Sequential`` of PyTorch's own layers, in evaluation mode.

    A generator with convolutional ends takes z of shape (N, z_dim, 1, 1), one with linear ends (N, z_dim).
    """
    layers = with_library_layers(copy.deepcopy(network)).eval().layers
    assert isinstance(layers, nn.Sequential)
    return layers


def layer_lists(hp: HParams) -> dict[str, list[tuple[str, dict[str, Any]]]] | None:
    """The layers of generator and discriminator as plain values; None for networks that are not this package's."""
    if hp.network != DCGAN:
        return None
    with torch.device("meta"):
        return {"generator": layer_list(Generator(hp)), "discriminator": layer_list(Discriminator(hp))}


def layer_list(network: Generator | Discriminator) -> list[tuple[str, dict[str, Any]]]:
    """(class of ``torch.nn``, its arguments) of each layer, as plain values."""
    listed = []
    for module in plain(network):
        arguments = {name: getattr(module, name) for name in _ARGUMENTS[type(module)]}
        if isinstance(module, nn.ConvTranspose2d | nn.Conv2d | nn.Linear):
            arguments["bias"] = module.bias is not None
        listed.append((type(module).__name__, arguments))
    return listed


class PlainGenerator(nn.Module):
    """z of shape (N, z_dim) to images of shape (N, C, H, W) in [-1, 1], in PyTorch's own layers."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.linear, self.layers = generator.linear, plain(generator)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.layers(z if self.linear else z[:, :, None, None])
        return images
