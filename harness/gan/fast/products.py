"""Convolutions as matrix products, wholly or in part, and where these are faster than the library's kernels.

S and L are the channels of a layer's smaller and larger maps, in either direction. What each product gains:
docs/lab/2026-11.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from harness.gan.fast.precision import has_amx

# Products of about this size are made and added up at a time, so that they stay in a core's cache.
_CHUNK_BYTES = 2**21


class Products(NamedTuple):
    """What of a layer is one: the way from the larger maps to the smaller, the way back, and the weights' gradient."""

    down: bool
    up: bool
    weights: bool


def faster_as_matmul(weight: Tensor, images: int, rows: int, *, doubles: bool, learns: bool) -> Products:
    """Which passes are faster as matrix products, for layers whose smaller maps have ``rows`` pixels in total.

    The weight is (channels of the smaller maps, of the larger, k, k), in the type that is used. ``doubles``: the larger
    map has exactly twice the side (kernel 4, stride 2, padding 1). ``learns``: the weights' gradient is wanted.

    Measured for kernels of 4x4 and 5x5, stride 2, batches of 16 to 128 and 16 to 1024 channels: docs/lab/2026-11.md.
    """
    channels, pixels, amx = weight.shape[0], rows // images, weight.dtype == torch.bfloat16 and has_amx()
    if weight.dtype != torch.bfloat16:
        weights = pixels <= 16 and (channels >= 512 or (channels >= 128 and rows <= 256))
    else:
        weights = (pixels <= 16 and channels >= 128) or (pixels <= 64 and channels >= (256 if amx else 512))
    weights = weights and learns
    down = amx and (weights or (pixels <= 16 and channels >= 512))
    return Products(down=down, up=amx and doubles and pixels <= 16 and channels >= 256, weights=weights)


def plus(maps_NCHW: Tensor, bias: Tensor | None) -> Tensor:
    return maps_NCHW if bias is None else maps_NCHW + bias.to(maps_NCHW.dtype).view(1, -1, 1, 1)


def operands(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in autocast's type: it does not reach into functions that define their own gradients."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype)


def up_to_image(maps_NCHW: Tensor, weight: Tensor) -> Tensor:
    """``conv_transpose2d(maps, weight, stride=2, padding=1)`` with a kernel of 4 to few channels: (N, C, 2H, 2W).

    The products of all 16 places of the kernel are planes of (H, W). Those of rows i = 2a + r and columns j = 2b + s
    belong to the pixels of parity (r, s), shifted by (a, b) pairs of pixels; four of them are added up for each.
    """
    n, inputs, height, width = maps_NCHW.shape
    channels = weight.shape[1]
    matrix = weight.permute(2, 3, 1, 0).reshape(16 * channels, inputs)
    maps_NHWC = maps_NCHW.permute(0, 2, 3, 1)
    images_NCHW = _empty_maps(maps_NCHW, (n, channels, 2 * height, 2 * width))
    images = images_NCHW.permute(0, 2, 3, 1).view(n, height, 2, width, 2, channels)
    step = max(1, _CHUNK_BYTES // (16 * channels * height * width * maps_NCHW.element_size()))
    for start in range(0, n, step):
        part = maps_NHWC[start : start + step]
        k = len(part)
        products = (matrix @ part.reshape(-1, inputs).t()).view(2, 2, 2, 2, channels, k, height, width)
        # Half precision is added up in single.
        exact = torch.promote_types(maps_NCHW.dtype, torch.float32)
        sums = torch.zeros(2, 2, channels, k, height + 1, width + 1, dtype=exact)
        for a in (0, 1):
            for b in (0, 1):
                sums[..., a : a + height, b : b + width] += products[a, :, b]
        # Row 2p + r of the padded image is row 2p + r - 1 of the image.
        for row in (0, 1):
            for column in (0, 1):
                parity = sums[1 - row, 1 - column, :, :, row : row + height, column : column + width]
                images[start : start + k, :, row, :, column] = parity.permute(1, 2, 3, 0)
    return images_NCHW


class Convolution(torch.autograd.Function):
    """A convolution, transposed or not, of which some parts are matrix products and the others the library's.

    The weights are (S, L, k, k) for S channels of the smaller maps and L of the larger ones, in either direction. A
    pixel of the smaller maps is the product of the weights and the patch of the larger ones that belongs to it; the
    weights' gradient is that of all pixels and their patches.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        places: list[list[int]],
        transposed: bool,
        products: Products,
        up: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        ctx.places, ctx.transposed, ctx.products, ctx.up = places, transposed, products, up
        stride, padding, output_padding = places
        patches = None
        if transposed and products.up:
            maps = plus(up(x_NCHW, weight), bias)
        elif not transposed and products.down:
            height, width = ((n + 2 * padding[0] - weight.shape[2]) // stride[0] + 1 for n in x_NCHW.shape[2:])
            patches = _patches(x_NCHW, weight.shape[2], stride[0], padding[0], torch.Size((height, width)))
            maps = plus(_from_patches(patches, weight, len(x_NCHW), height), bias)
        else:
            maps = torch.convolution(x_NCHW, weight, bias, stride, padding, [1, 1], transposed, output_padding, 1)
        ctx.save_for_backward(x_NCHW, weight, patches if products.weights else None)
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x_NCHW, weight, patches = ctx.saved_tensors
        stride, padding, output_padding = ctx.places
        small, large = (x_NCHW, gradient) if ctx.transposed else (gradient, x_NCHW)
        kernel, learns = weight.shape[2], ctx.needs_input_grad[1]
        if patches is None and ((learns and ctx.products.weights) or (ctx.transposed and ctx.products.down)):
            patches = _patches(large, kernel, stride[0], padding[0], small.shape[2:])
        to_x = to_weight = to_bias = None
        if learns and ctx.products.weights:
            product = small.permute(0, 2, 3, 1).reshape(-1, small.shape[1]).t() @ patches
            to_weight = product.view(-1, kernel, kernel, large.shape[1]).permute(0, 3, 1, 2)
            if ctx.needs_input_grad[2]:  # asked for the bias's, oneDNN makes the weights' as well
                to_bias = gradient.sum((0, 2, 3))
        if ctx.needs_input_grad[0] and ctx.transposed and ctx.products.down:
            to_x = _from_patches(patches, weight, *small.shape[::2])
        elif ctx.needs_input_grad[0] and not ctx.transposed and ctx.products.up:
            to_x = ctx.up(gradient, weight)
        made: tuple[Tensor | None, ...] = (to_x, to_weight, to_bias)
        wanted = [needed and own is None for needed, own in zip(ctx.needs_input_grad, made, strict=False)]
        if any(wanted):
            biases = [weight.shape[1 if ctx.transposed else 0]]
            library = torch.ops.aten.convolution_backward(
                gradient, x_NCHW, weight, biases, stride, padding, [1, 1], ctx.transposed, output_padding, 1, wanted
            )
            made = tuple(own if own is not None else other for own, other in zip(made, library, strict=True))
        return *made, None, None, None, None


def _from_patches(patches: Tensor, weight: Tensor, images: int, height: int) -> Tensor:
    """The smaller maps, shape (N, S, H, W), of their patches of the larger ones."""
    channels = weight.shape[0]
    width = len(patches) // (images * height)
    maps_NCHW = _empty_maps(patches, (images, channels, height, width))
    pixels = maps_NCHW.permute(0, 2, 3, 1).view(-1, channels)
    torch.mm(patches, weight.permute(0, 2, 3, 1).reshape(channels, -1).t(), out=pixels)
    return maps_NCHW


def up_to_maps(maps_NCHW: Tensor, weight: Tensor) -> Tensor:
    """As :func:`up_to_image`, for many channels: shape (N, L, 2H, 2W).

    The pixels of each parity (r, s) are the product of 2x2 pixels of the smaller maps and as many places of the kernel.
    """
    n, _, height, width = maps_NCHW.shape
    larger_NCHW = _empty_maps(maps_NCHW, (n, weight.shape[1], 2 * height, 2 * width))
    larger = larger_NCHW.permute(0, 2, 3, 1).view(n, height, 2, width, 2, -1)
    windows = _windows(maps_NCHW, kernel=2, stride=1, before=1, after=(1, 1))
    for r in (0, 1):
        for s in (0, 1):
            patches = windows[:, r : r + height, s : s + width].reshape(n * height * width, -1)
            matrix = torch.cat([weight[:, :, i, j] for i in (3 - r, 1 - r) for j in (3 - s, 1 - s)])
            larger[:, :, r, :, s] = (patches @ matrix).view(n, height, width, -1)
    return larger_NCHW


def _empty_maps(like: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Maps in channels-last memory, and no view of anything, which an activation after a layer could not change."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _patches(maps_NCHW: Tensor, kernel: int, stride: int, padding: int, places: torch.Size) -> Tensor:
    """The patch at each of (H, W) places, shape (N * H * W, kernel * kernel * C)."""
    # An output's padding may reach beyond; what no patch reaches is left out.
    ends = [(place - 1) * stride + kernel - padding for place in places]
    after = [end - side for end, side in zip(ends, maps_NCHW.shape[2:], strict=True)]
    windows = _windows(maps_NCHW, kernel=kernel, stride=stride, before=padding, after=(after[0], after[1]))
    return windows.reshape(len(maps_NCHW) * places[0] * places[1], -1)


def _windows(maps_NCHW: Tensor, *, kernel: int, stride: int, before: int, after: tuple[int, int]) -> Tensor:
    """All of a padded map, shape (N, H, W, kernel, kernel, C), without copying them."""
    maps_NHWC = F.pad(maps_NCHW.permute(0, 2, 3, 1), (0, 0, before, after[1], before, after[0]))
    return maps_NHWC.unfold(1, kernel, stride).unfold(2, kernel, stride).permute(0, 1, 2, 4, 5, 3)
