"""Images from a generator: a seed gives the same ones in scores, grids and ``harness generate``; PNG files of them."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn
from torchvision.utils import make_grid

from harness import atomic
from harness.data.decode import MADE_BY
from harness.errors import UsageError
from harness.gan.fast.precision import FLOAT32, tensor_cores
from harness.gan.hparams import HParams
from harness.gan.networks import from_uniform

BATCH = 50
GRID_SEED = 0
GRID_IMAGES = 64


def scoring_noise(n: int, hp: HParams, seed: int) -> Tensor:
    """z of shape (n, z_dim), float32, drawn as torch-fidelity draws it; the first n of m > n draws are the n draws."""
    rng = np.random.RandomState(seed)
    if hp.latent == "normal":
        return torch.from_numpy(rng.randn(n, hp.z_dim)).float()
    return from_uniform(torch.from_numpy(rng.rand(n, hp.z_dim)), hp.latent).float()


def with_batch_statistics(generator: nn.Module) -> nn.Module:
    """A copy whose BatchNorm uses the statistics of each batch in evaluation mode too, as in training."""
    other = copy.deepcopy(generator)
    for module in other.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Without running statistics, PyTorch uses the batch's.
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return other


@contextmanager
def evaluating(generator: nn.Module) -> Iterator[None]:
    """Evaluation mode (BatchNorm with running statistics) inside; the previous mode is restored afterwards."""
    mode = generator.training
    generator.eval()
    try:
        yield
    finally:
        generator.train(mode)


def to_uint8(images_BCHW: Tensor) -> Tensor:
    """[-1, 1] to 0..255, rounded; grey images become three equal channels."""
    scaled = images_BCHW.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return scaled.expand(-1, 3, -1, -1) if scaled.shape[1] == 1 else scaled


def generate(generator: nn.Module, hp: HParams, n: int, seed: int, device: torch.device) -> Tensor:
    """n images in [-1, 1], float32, shape (n, channels, size, size), on the CPU, in batches of fixed size."""
    return images_of(generator, scoring_noise(n, hp, seed), device)


def images_of(generator: nn.Module, latents: Tensor, device: torch.device) -> Tensor:
    """The images of z, shape (N, z_dim), as :func:`generate` gives them."""
    with evaluating(generator), torch.inference_mode(), tensor_cores(FLOAT32, device):
        batches = [generator(z.to(device)).float().cpu() for z in torch.split(latents, BATCH)]
    return torch.cat(batches)


def walk(latents: Tensor, steps: int, law: str) -> Tensor:
    """From each z to the next in ``steps`` z, both ends included: shape ((N - 1) * steps, z_dim) for (N, z_dim).

    For normal z along a great circle (Shoemake 1985; White 2016, section 2.1), whose points are as long as z of that
    law are; points on a straight line are too near 0. For other laws, and between opposite z, straight.
    """
    start, end = latents[:-1, None], latents[1:, None]
    part = torch.linspace(0, 1, steps, dtype=latents.dtype)[None, :, None]
    path = torch.lerp(start, end, part)
    if law == "normal":
        angle = torch.arccos(torch.cosine_similarity(start, end, dim=2).clamp(-1, 1))[..., None]
        arc = (torch.sin((1 - part) * angle) * start + torch.sin(part * angle) * end) / torch.sin(angle)
        path = torch.where(torch.sin(angle).abs() > 1e-4, arc, path)
    return path.flatten(0, 1)


def samples(generator: nn.Module, hp: HParams, n: int, seed: int, device: torch.device) -> tuple[Tensor, str]:
    """The images of :func:`generate` as uint8, shape (n, 3, size, size), and why they must not be scored, or "".

    Only one batch at a time is held as float32: 10,000 images of 128 px would take 2 GB.
    """
    images = torch.empty(n, hp.channels, hp.image_size, hp.image_size, dtype=torch.uint8)
    made, constant = 0, True
    with evaluating(generator), torch.inference_mode(), tensor_cores(FLOAT32, device):
        for z in torch.split(scoring_noise(n, hp, seed), BATCH):
            batch = generator(z.to(device)).float().cpu()
            if not bool(torch.isfinite(batch).all()):
                return images, "the generator gives non-finite images"
            images[made : made + len(batch)] = to_uint8(batch)[:, : hp.channels]
            constant = constant and bool((images[made : made + len(batch)] == images[:1]).all())
            made += len(batch)
    return images.expand(-1, 3, -1, -1), "the generator gives one image whatever its input" if constant else ""


def image_grid(images_BCHW: Tensor, columns: int = 8) -> np.ndarray:
    """A sheet of images in [-1, 1] as a uint8 array of shape (H, W, 3)."""
    grid = make_grid(to_uint8(images_BCHW), nrow=columns, padding=1, pad_value=128)
    array: np.ndarray = grid.permute(1, 2, 0).numpy()
    return array


def save_png(path: Path, pixels_HWC: np.ndarray, *, made_by: str = MADE_BY) -> None:
    """Write a picture that says who made it, so that it is never trained on."""
    buffer, info = io.BytesIO(), PngInfo()
    if made_by:
        info.add_text("Software", made_by)
    # "optimize" takes up to 0.2 s for a sample grid, and the file is no smaller.
    Image.fromarray(pixels_HWC).save(buffer, "PNG", compress_level=3, pnginfo=info)
    atomic.write_bytes(path, buffer.getvalue())


def save_folder(folder: Path, images_BCHW: Tensor, *, made_by: str = MADE_BY) -> None:
    """Write uint8 images of three channels as numbered PNG files, the only files of the folder."""
    refuse_to_mix(folder)
    for index, pixels in enumerate(images_BCHW.permute(0, 2, 3, 1).numpy()):
        save_png(folder / f"{index:06d}.png", pixels, made_by=made_by)


def refuse_to_mix(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", "Its files would be mixed with the images: name another folder.")
