"""What is in a set of images: how many, how large, grey or colour, and how many copies."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness.data.decode import size_of
from harness.data.listing import list_images
from harness.data.store import ImageStore
from harness.home import Home

# Files whose sizes are read, evenly spread over the set.
_FILES = 500


def look(store: ImageStore, home: Home, source: Path) -> Iterator[str]:
    """Sentences on prepared images and the files that they are of."""
    yield f"{len(store):,} usable images, {'grey' if is_grey(store) else 'colour'}"
    if sizes := _sizes(source, home):
        low, middle, high = sizes[0], sizes[len(sizes) // 2], sizes[-1]
        of = f" (of {len(sizes)} files)" if len(sizes) == _FILES else ""
        yield f"from {low[0]}x{low[1]} to {high[0]}x{high[1]} px, median {middle[0]}x{middle[1]}{of}"
    pixels = np.load(store.path / "images.npy", mmap_mode="r")
    if copies := len(pixels) - len({hashlib.sha256(image.tobytes()).digest() for image in pixels}):
        which = "is an exact copy of another" if copies == 1 else "are exact copies of others"
        yield f"{copies:,} {which}; each copy counts as an image"
    if left_out := store.rejected:
        reasons = [_kind(why) for why in left_out.values()]
        most = statistics.mode(reasons)
        example = next(name for name, why in left_out.items() if _kind(why) == most)
        yield f"{len(left_out):,} left out, {reasons.count(most):,} of them because {most}, such as {example}"


def is_grey(store: ImageStore) -> bool:
    """Whether every pixel of every image has one value for all colours."""
    pixels = np.load(store.path / "images.npy", mmap_mode="r")
    return all(bool((image == image[..., :1]).all()) for image in pixels)


def _sizes(source: Path, home: Home) -> list[tuple[int, int]]:
    """(width, height) of up to 500 files of a folder or zip, by their smaller side; empty for an array."""
    if source.suffix in (".npy", ".npz"):
        return []
    files = list_images(source, home.root).files
    chosen = files[:: -(-len(files) // _FILES)]
    sizes = [size_of(source, name) for name, _, _ in chosen]
    return sorted((size for size in sizes if size), key=lambda size: (min(size), max(size)))


def _kind(why: str) -> str:
    """A reason without what is this file's alone, such as its size."""
    return "they are too small" if "is smaller than" in why else why.split(":")[0]
