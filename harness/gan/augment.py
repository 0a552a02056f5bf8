"""Differentiable augmentation (Zhao et al. 2020, section 3.2): what the discriminator sees, real and fake alike.

With few images a discriminator memorises them. Augmenting real images alone would teach the generator to augment; here
both pass through it, in both networks' updates, and the generator's gradient passes back through it. Shapes are static
and nothing is read back to the host, so that a CUDA graph can hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Shares of an image's side: the farthest translation, and the square that is cut out.
TRANSLATION, CUTOUT = 0.125, 0.5


def augmented(images_NCHW: Tensor, policy: str, rng: torch.Generator) -> Tensor:
    """Images of shape (N, C, H, W) after a policy of :attr:`HParams.diffaugment`, in float32 or wider.

    Each image draws for itself, from ``rng`` on its device. ``color``: brightness, saturation and contrast;
    ``translation``: by up to an eighth of the side, with zeros where nothing comes from; ``cutout``: a square of half
    the side becomes zero. Deterministic also on CUDA: a pixel's gradient has one source.
    """
    if policy == "none":
        return images_NCHW
    images = images_NCHW.to(torch.promote_types(images_NCHW.dtype, torch.float32))
    if "color" in policy:
        images = _coloured(images, rng)
    keep = torch.ones((), dtype=images.dtype, device=images.device)
    if "translation" in policy:
        images, keep = _translated(images, rng)
    if "cutout" in policy:
        keep = keep * _outside_square(images, rng)
    return images if policy == "color" else images * keep


def _coloured(images_NCHW: Tensor, rng: torch.Generator) -> Tensor:
    """``x + U(-1/2, 1/2)``; then away from the pixel's grey by U(0, 2), and from the image's mean by U(1/2, 3/2)."""
    shape = (3, len(images_NCHW), 1, 1, 1)
    brightness, saturation, contrast = torch.rand(shape, generator=rng, device=rng.device, dtype=images_NCHW.dtype)
    images = images_NCHW + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    contrasted: Tensor = (images - mean) * (contrast + 0.5) + mean
    return contrasted


def _translated(images_NCHW: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels (y, x) from (y + dy, x + dx), the edge's where there is none; and which are, shape (N, 1, H, W)."""
    n, channels, height, width = images_NCHW.shape
    (from_y, in_y), (from_x, in_x) = (_shifted(n, side, rng) for side in (height, width))
    source = (from_y[:, :, None] * width + from_x[:, None, :]).view(n, -1, 1)
    pixels = images_NCHW.permute(0, 2, 3, 1).reshape(n, height * width, channels)
    moved = pixels.gather(1, source.expand(-1, -1, channels)).view(n, height, width, channels)
    inside = in_y[:, :, None] & in_x[:, None, :]
    return moved.permute(0, 3, 1, 2), inside[:, None].to(images_NCHW.dtype)


def _shifted(n: int, side: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where each of ``side`` positions comes from, or the nearest in the image, and whether it does; both (N, side)."""
    most = int(side * TRANSLATION + 0.5)
    by = torch.randint(-most, most + 1, (n, 1), generator=rng, device=rng.device)
    source = torch.arange(side, device=rng.device) + by
    return source.clamp(0, side - 1), (source >= 0) & (source < side)


def _outside_square(images_NCHW: Tensor, rng: torch.Generator) -> Tensor:
    """0 in a square whose centre is anywhere in the image, 1 elsewhere; shape (N, 1, H, W)."""
    n, _, height, width = images_NCHW.shape
    within = []
    for side in (height, width):
        cut = int(side * CUTOUT + 0.5)
        first = torch.randint(0, side + 1 - cut % 2, (n, 1), generator=rng, device=rng.device) - cut // 2
        position = torch.arange(side, device=rng.device)
        within.append((position >= first) & (position < first + cut))
    square = within[0][:, :, None] & within[1][:, None, :]
    return (~square)[:, None].to(images_NCHW.dtype)
