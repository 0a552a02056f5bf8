"""ImageStore: prepared images as one memory-mapped uint8 array with a manifest; whole and verified, or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from harness import atomic
from harness.data.decode import Preparation, decode_chunk
from harness.data.sources import CELEBA_HELP, Listing, list_images, mnist_images
from harness.errors import DataError
from harness.home import Home
from harness.study.hparams import digest
from harness.study.spec import DataSpec

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 200
# Free space that must remain after a store is written.
_RESERVE_BYTES = 200 * 2**20
_ARRAY, _MANIFEST = "images.npy", "manifest.json"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ImageStore:
    """Square uint8 images, shape (N, H, W, C), memory-mapped.

    ``fingerprint`` is the sha256 of shape and pixels: a changed image changes it.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def rejected(self) -> dict[str, str]:
        return dict(self.manifest["rejected"])

    def __len__(self) -> int:
        return int(self.manifest["shape"][0])

    def tensor(self) -> Tensor:
        """The images as a tensor over the memory map: pages are read when they are indexed."""
        import torch  # preparing images needs no torch, and starts sooner without

        array = np.load(self.path / _ARRAY, mmap_mode="r")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array)

    def verify(self) -> None:
        """Compare the pixels with the manifest.

        Raises:
            DataError: they differ.
        """
        if _fingerprint(np.load(self.path / _ARRAY, mmap_mode="r")) != self.fingerprint:
            raise DataError(f"the image store {self.path} is damaged", "Delete that folder; it is built again.")


def open_store(
    home: Home, data: DataSpec, source: Path | None, *, study: str, on_progress: OnProgress, say: Callable[[str], None]
) -> ImageStore:
    """The store of these images, prepared now unless it is there already.

    Args:
        home: stores live under ``data/``.
        data: source, size and crop.
        source: folder or zip for ``celeba`` and ``folder``; None for embedded data.
        study: named in the help on getting data.
        on_progress: told (done, total) files.
        say: told what was rejected or converted.

    Raises:
        DataError: no data given, no image usable, disk too full, or the store is damaged.
    """
    prep = Preparation(image_size=data.image_size, channels=data.channels, crop=data.crop)
    if data.source == "mnist":
        identity: dict[str, Any] = {"source": "mnist", "images": 5000, "prep": asdict(prep)}
        return _open(home, "mnist", identity, lambda out: _fill_mnist(out, prep), 5000, prep)
    if source is None:
        raise _missing_data(data, study)
    listing = list_images(source.resolve())
    identity = {"source": str(listing.root), "files": listing.signature, "prep": asdict(prep)}

    def fill(out: np.ndarray) -> tuple[int, dict[str, str], dict[str, str]]:
        return _fill_files(out, listing, prep, on_progress)

    store = _open(home, data.source, identity, fill, len(listing.members), prep)
    for name, why in list(store.rejected.items())[:20]:
        say(f"left out {name}: {why}")
    if len(store.rejected) > 20:
        say(f"left out {len(store.rejected) - 20} more; all are named in {store.path / _MANIFEST}")
    return store


def _missing_data(data: DataSpec, study: str) -> DataError:
    size_mb = 202_599 * data.image_size**2 * data.channels / 1e6
    if data.source == "celeba":
        return DataError(f"study {study} needs CelebA", CELEBA_HELP.format(study=study, size_mb=size_mb))
    return DataError(f"study {study} needs images", "Pass DATA=/path/to/a/folder/or/zip of images.")


Fill = Callable[[np.ndarray], tuple[int, dict[str, str], dict[str, str]]]


def _open(home: Home, label: str, identity: dict[str, Any], fill: Fill, count: int, prep: Preparation) -> ImageStore:
    name = f"{label}-{prep.image_size}-{digest(identity)}"
    folder = home.within("data", name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):
        if not (folder / _MANIFEST).is_file():
            _build(folder, fill, (count, prep.image_size, prep.image_size, prep.channels))
    store = ImageStore(folder, json.loads((folder / _MANIFEST).read_text()))
    store.verify()
    return store


def _build(folder: Path, fill: Fill, shape: tuple[int, int, int, int]) -> None:
    needed = 2 * int(np.prod(shape))  # all files, then those that are usable, side by side until the end
    free = shutil.disk_usage(folder.parent).free
    if free < needed + _RESERVE_BYTES:
        raise DataError(
            f"{folder.parent} has {free / 1e6:,.0f} MB free; the prepared images need {needed / 1e6:,.0f} MB",
            "Free some space, or set HARNESS_HOME to a larger disk.",
        )
    for stale in folder.parent.glob(f".{folder.name}.tmp-*"):  # a build that was killed; the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
    try:
        out = _allocate(temporary / "raw.npy", shape)
        used, rejected, notes = fill(out)
        if not used:
            first = next(iter(rejected.items()), ("", "no file"))
            raise DataError(f"none of {shape[0]} files is usable; the first, {first[0]}: {first[1]}")
        final = _allocate(temporary / _ARRAY, (used, *shape[1:]))
        for start in range(0, used, 4096):
            final[start : min(used, start + 4096)] = out[start : min(used, start + 4096)]
        final.flush()
        manifest = {
            "shape": list(final.shape),
            "fingerprint": _fingerprint(final),
            "rejected": rejected,
            "converted": notes,
        }
        del out, final
        (temporary / "raw.npy").unlink()
        atomic.write_text(temporary / _MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)  # without a manifest it is not a store
        temporary.replace(folder)
        atomic.sync_folder(folder.parent)
    except OSError as error:
        raise DataError(f"the image store could not be written: {error}", "Is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A memory-mapped array whose space is taken now: a full disk is an OSError here, not a SIGBUS later."""
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _fingerprint(array: np.ndarray) -> str:
    total = hashlib.sha256(str(array.shape).encode())
    for start in range(0, len(array), 4096):
        total.update(np.ascontiguousarray(array[start : start + 4096]).data)
    return total.hexdigest()


def _fill_mnist(out: np.ndarray, prep: Preparation) -> tuple[int, dict[str, str], dict[str, str]]:
    """Digits keep their pixels: 28 px are centred on black in 32 px, and resized for other sizes."""
    images = np.pad(mnist_images(), ((0, 0), (2, 2), (2, 2)))
    if prep.image_size != 32:
        from PIL import Image

        size = (prep.image_size, prep.image_size)
        images = np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in images])
    out[:] = images[..., None]
    return len(images), {}, {}


def _fill_files(
    out: np.ndarray, listing: Listing, prep: Preparation, on_progress: OnProgress
) -> tuple[int, dict[str, str], dict[str, str]]:
    used = done = 0
    rejected: dict[str, str] = {}
    notes: dict[str, str] = {}
    chunks = list(_parts(listing.members, _CHUNK))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(chunks))
    # spawn: the parent may hold threads (torch, the live table) that must not be forked.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = pool.map(decode_chunk, (listing.root for _ in chunks), (listing.is_zip for _ in chunks), chunks,
                        (prep for _ in chunks))  # fmt: skip
        for members, results in zip(chunks, jobs, strict=True):
            for member, (pixels, note) in zip(members, results, strict=True):
                if pixels is None:
                    rejected[member] = note
                    continue
                out[used] = pixels
                used += 1
                if note:
                    notes[member] = note
            done += len(members)
            on_progress(done, len(listing.members))
    return used, rejected, notes


def _parts(members: tuple[str, ...], size: int) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(members), size):
        yield members[start : start + size]
