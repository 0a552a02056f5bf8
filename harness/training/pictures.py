"""Images as PNG files: folders of them, and sheets."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from harness.data.store import ImageStore
from harness.errors import UsageError
from harness.scoring.reference import reference_images
from harness.scoring.sampling import image_grid
from harness.scoring.scorer import split_images
from harness.spec.tables import ScoreSpec
from harness.training.attempt import save_png


def save_folder(folder: Path, images_BCHW: Tensor) -> None:
    """Write uint8 images of three channels as numbered PNG files, the only files of the folder.

    Raises:
        UsageError: the folder has other files.
    """
    refuse_to_mix(folder)
    for index, pixels in enumerate(images_BCHW.permute(0, 2, 3, 1).numpy()):
        save_png(folder / f"{index:06d}.png", pixels)


def refuse_to_mix(folder: Path) -> None:
    """Accept only a folder that is empty or absent.

    Raises:
        UsageError: there is something in it.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", "Its files would be mixed with the images: name another folder.")


def save_reference(folder: Path, store: ImageStore, scoring: ScoreSpec) -> int:
    """Write the real images that a protocol compares with; return how many they are.

    Raises:
        UsageError: the folder has other files.
        DataError: there are fewer images than the protocol needs.
    """
    images = reference_images(split_images(store, scoring), scoring.reference)
    save_folder(folder, images)
    return len(images)


def save_sheet(path: Path, store: ImageStore, n: int) -> int:
    """Write a sheet of up to n images, evenly spread over the set; return how many they are."""
    images = store.tensor()
    n = min(n, len(images))
    chosen = torch.linspace(0, len(images) - 1, n).long()
    save_png(path, image_grid(images[chosen].permute(0, 3, 1, 2).float() / 127.5 - 1))
    return n
