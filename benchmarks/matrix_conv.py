"""Convolutions as matrix products, beside oneDNN's: inner layers of a 64 px DCGAN, all tried, and the ends of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.gan.fast.layers import FromImage, Projection, ToImage, ToLogit

# Inputs, map size, outputs of the discriminator's layers; the generator's are the same ones backwards.
LAYERS_64PX = ((64, 32, 128), (128, 16, 256), (256, 8, 512))
# The harness's layer, PyTorch's, the arguments of both, the shape of an input.
ENDS_32PX: dict[str, tuple[type[nn.Module], type[nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "z to 256 maps": (Projection, nn.ConvTranspose2d, (100, 256, 4), (64, 100, 1, 1)),
    "64 maps to a coloured image": (ToImage, nn.ConvTranspose2d, (64, 3, 4, 2, 1), (64, 64, 16, 16)),
    "a coloured image to 64 maps": (FromImage, nn.Conv2d, (3, 64, 4, 2, 1), (64, 3, 32, 32)),
    "256 maps to a logit": (ToLogit, nn.Conv2d, (256, 1, 4), (64, 256, 4, 4)),
}


class MatrixConv(torch.autograd.Function):
    """``conv2d(x, weight, stride=2, padding=1)`` for a 4x4 kernel, on channels-last maps of even size.

    Patches are gathered into a matrix of (N * H/2 * W/2, 16 C); the product with the weights is the convolution, and
    both gradients are products as well. A transposed convolution is the same with forward and backward exchanged.
    """

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight: Tensor) -> Tensor:
        n, c, h, w = x_NCHW.shape
        padded = F.pad(x_NCHW.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        patches = padded.unfold(1, 4, 2).unfold(2, 4, 2).permute(0, 1, 2, 4, 5, 3).reshape(-1, 16 * c)
        matrix = weight.permute(2, 3, 1, 0).reshape(16 * c, -1)
        ctx.save_for_backward(patches, matrix)
        ctx.shape = x_NCHW.shape
        return (patches @ matrix).view(n, h // 2, w // 2, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        patches, matrix = ctx.saved_tensors
        n, c, h, w = ctx.shape
        g = gradients[0].permute(0, 2, 3, 1).reshape(-1, matrix.shape[1])
        to_weight = (patches.t() @ g).view(4, 4, c, -1).permute(3, 2, 0, 1)
        of_patches = (g @ matrix.t()).view(n, h // 2, w // 2, 2, 2, 2, 2, c)
        # Patch (i, j) covers the pairs of rows i and i + 1 of the padded map, and the pairs of columns j and j + 1.
        pairs = of_patches.new_zeros(n, h // 2 + 1, 2, w // 2 + 1, 2, c)
        for a in (0, 1):
            for b in (0, 1):
                to_pairs = of_patches[:, :, :, a, :, b].permute(0, 1, 3, 2, 4, 5)
                pairs[:, a : a + h // 2, :, b : b + w // 2] += to_pairs
        to_x = pairs.view(n, h + 2, w + 2, c)[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
        return to_x, to_weight


@contextmanager
def layer(c: int, size: int, outputs: int, dtype: torch.dtype) -> Iterator[tuple[Any, Any]]:
    """Forward and backward of one layer, batch 64: as matrix products, and as oneDNN does it.

    Raises:
        AssertionError: they are not the same function.
    """
    rng = torch.Generator().manual_seed(0)
    shapes = (2, c, size, size), (outputs, c, 4, 4)
    check = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
    torch.testing.assert_close(gradients(MatrixConv.apply, *check), gradients(onednn, *check), rtol=1e-9, atol=1e-9)
    x = torch.randn(64, c, size, size, generator=rng).to(dtype=dtype, memory_format=torch.channels_last)
    weight = torch.randn(outputs, c, 4, 4, generator=rng).to(dtype=dtype, memory_format=torch.channels_last)
    yield partial(gradients, MatrixConv.apply, x, weight), partial(gradients, onednn, x, weight)


@contextmanager
def end(name: str, dtype: torch.dtype) -> Iterator[tuple[Any, Any]]:
    """Forward and backward of one of :data:`ENDS_32PX`, batch 64: the harness's layer, and PyTorch's.

    That they are the same function is tested: ``tests/golden/test_layers.py``.
    """
    ours, plain, arguments, shape = ENDS_32PX[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x.to(dtype=dtype, memory_format=torch.channels_last).requires_grad_()

    def timed(kind: type[nn.Module]) -> Any:
        made = kind(*arguments, dtype=dtype).to(memory_format=torch.channels_last)
        return lambda: torch.autograd.grad(made(x).square().sum(), (x, *made.parameters()))

    yield timed(ours), timed(plain)


def onednn(x_NCHW: Tensor, weight: Tensor) -> Tensor:
    """The library's own."""
    return F.conv2d(x_NCHW, weight, stride=2, padding=1)


def gradients(convolution: Any, x_NCHW: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Output and both gradients."""
    x_NCHW, weight = x_NCHW.detach().requires_grad_(), weight.detach().requires_grad_()
    y = convolution(x_NCHW, weight)
    return y.detach(), *torch.autograd.grad(y.square().sum(), (x_NCHW, weight))
