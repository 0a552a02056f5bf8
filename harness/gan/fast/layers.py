"""Layers that are matrix products, wholly or in part, where general convolution kernels leave a processor idle; Adam.

That is where a map is one pixel or has one or three channels, and where maps are small and have many: there the
weights' gradient is a product, and with AMX the maps are. These layers are their PyTorch bases in parameters, names and
results (up to rounding). All but those of one pixel are so on the CPU alone. What each gains: docs/lab/2026-11.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.gan.fast.products import Convolution, Products, faster_as_matmul, operands, plus, up_to_image, up_to_maps

# Of a layer of images, the way from its maps to them.
_UP = Products(down=False, up=True, weights=False)


class Projection(nn.ConvTranspose2d):
    """The generator's first layer: z of shape (N, z_dim, 1, 1) to maps of the kernel's size, without padding."""

    def forward(self, z_NC11: Tensor, output_size: Any = None) -> Tensor:
        inputs, outputs, height, width = self.weight.shape
        maps = z_NC11.flatten(1) @ self.weight.permute(0, 2, 3, 1).reshape(inputs, -1)
        maps_NCHW = maps.view(-1, height, width, outputs).permute(0, 3, 1, 2)
        return plus(maps_NCHW, self.bias)


class ToLogit(nn.Conv2d):
    """The discriminator's last layer: maps of the kernel's size, without padding, to one pixel each."""

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(maps_NCHW.permute(0, 2, 3, 1).flatten(1), weight, self.bias)[:, :, None, None]


class ToImage(nn.ConvTranspose2d):
    """The generator's last layer, of kernel 4, stride 2 and padding 1, to few channels."""

    def forward(self, maps_NCHW: Tensor, output_size: Any = None) -> Tensor:
        if maps_NCHW.device.type != "cpu":
            return super().forward(maps_NCHW, output_size)
        maps_NCHW, weight = operands(maps_NCHW, self.weight)
        images: Tensor = Convolution.apply(maps_NCHW, weight, None, _places(self), True, _UP, up_to_image)
        return plus(images, self.bias)


class FromImage(nn.Conv2d):
    """The discriminator's first layer, of kernel 4, stride 2 and padding 1, from few channels."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        if images_NCHW.device.type != "cpu" or not images_NCHW.requires_grad:
            return super().forward(images_NCHW)
        images_NCHW, weight = operands(images_NCHW, self.weight)
        bias = self.bias if self.bias is None else self.bias.to(weight.dtype)
        maps: Tensor = Convolution.apply(images_NCHW, weight, bias, _places(self), False, _UP, up_to_image)
        return maps


class ToMaps(nn.Unflatten):
    """A linear layer's outputs to maps that lie in memory as the convolutions after it want them."""

    def forward(self, units: Tensor) -> Tensor:
        maps_NCHW: Tensor = super().forward(units)
        return maps_NCHW.contiguous(memory_format=torch.channels_last) if maps_NCHW.device.type == "cpu" else maps_NCHW


class FromMaps(nn.Flatten):
    """Maps to a linear layer's inputs; the gradient lies in memory as the maps do, which activations want."""

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        if maps_NCHW.device.type == "cpu" and maps_NCHW.requires_grad:
            maps_NCHW = maps_NCHW.view_as(maps_NCHW)
            maps_NCHW.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: gradient.contiguous(memory_format=torch.channels_last)
            )
        units: Tensor = super().forward(maps_NCHW)
        return units


class Down(nn.Conv2d):
    """A convolution inside the discriminator."""

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        return _convolution(self, super().forward, maps_NCHW, transposed=False)


class Up(nn.ConvTranspose2d):
    """A transposed convolution inside the generator."""

    def forward(self, maps_NCHW: Tensor, output_size: Any = None) -> Tensor:
        return _convolution(self, super().forward, maps_NCHW, transposed=True)


def with_library_layers(network: nn.Module) -> nn.Module:
    """The same network and parameters with PyTorch's own layers in place of these: what they are compared with."""
    for module in network.modules():
        kind: Any = type(module)
        if kind in (Projection, ToImage, ToLogit, FromImage, ToMaps, FromMaps, Down, Up):
            (base,) = kind.__bases__
            module.__class__ = base
    return network


def _convolution(
    layer: Down | Up, library: Callable[[Tensor], Tensor], maps_NCHW: Tensor, *, transposed: bool
) -> Tensor:
    """The library's result and gradients, or products where they are faster."""
    if maps_NCHW.device.type != "cpu":
        return library(maps_NCHW)
    x, weight = operands(maps_NCHW, layer.weight)
    stride = 1 if transposed else layer.stride[0]
    rows = len(x) * (x.shape[2] // stride) * (x.shape[3] // stride)
    even = not any(layer.output_padding) if transposed else not (x.shape[2] % 2 or x.shape[3] % 2)
    doubles = even and (layer.kernel_size[0], layer.stride[0], layer.padding[0]) == (4, 2, 1)
    learns = layer.weight.requires_grad and torch.is_grad_enabled()
    products = faster_as_matmul(weight, len(x), rows, doubles=doubles, learns=learns)
    if not any(products):
        return library(maps_NCHW)
    bias = layer.bias if layer.bias is None else layer.bias.to(weight.dtype)
    maps: Tensor = Convolution.apply(x, weight, bias, _places(layer), transposed, products, up_to_maps)
    return maps


def _places(layer: Any) -> list[list[int]]:
    return [list(pair) for pair in (layer.stride, layer.padding, layer.output_padding)]


class Adam(torch.optim.Adam):
    """PyTorch's fused one, bit for bit, without its copies of convolutions' gradients on a CPU.

    Its kernel there wants contiguous tensors. In channels-last memory format they are, with their channels named last.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> bool:
        has_complex: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        parameters, *tensors, _ = lists
        last = [p.device.type == "cpu" and p.dim() == 4 and not p.is_contiguous() for p in parameters]
        for each in (parameters, *tensors):  # one of them is empty
            each[:] = [t.permute(0, 2, 3, 1) if so else t for t, so in zip(each, last, strict=False)]
        return has_complex
