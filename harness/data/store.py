"""ImageStore: prepared images in one memory-mapped uint8 array with a manifest; whole and verified, or absent."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from harness import atomic
from harness.data.material import CHUNK, Material, Say, find_material, of_object
from harness.data.sources import printable
from harness.errors import DataError
from harness.gan.hparams import digest
from harness.home import Home
from harness.spec.tables import DataSpec

if TYPE_CHECKING:
    from torch import Tensor

# Disk space that must remain free after a store is written.
_RESERVE_BYTES = 200 * 2**20
_PIECE_BYTES = 16 * 2**20
# A set whose pixels span fewer values than this has hardly any contrast.
_NARROW = 64
# Nor are those of a set without any pixel of this value or more.
_HALF = 128
_ARRAY, _MANIFEST = "images.npy", "manifest.json"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ImageStore:
    """Square uint8 images, shape (N, H, W, C), memory-mapped; those held out come last.

    ``fingerprint`` is the sha256 of shape and pixels: a changed image changes it.
    """

    path: Path
    manifest: dict[str, Any]
    instead_of_celeba: bool = False  # as of Material

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def named(self, source: str) -> str:
        """What the images are called where a study's ``source`` is this: not CelebA where they are others."""
        return "folder" if self.instead_of_celeba else source

    @property
    def rejected(self) -> dict[str, str]:
        """What was left out, and why; safe to show."""
        return {printable(name): printable(why) for name, why in self.manifest["rejected"].items()}

    @property
    def warnings(self) -> list[str]:
        """Pixels of a narrow range, files of several pictures; stores of earlier versions have no ``pixels``."""
        low, high = self.manifest.get("pixels", (0, 255))
        said = [self.manifest["scaled"]] if self.manifest.get("scaled") else []
        if high - low < _NARROW:
            said.append(
                f"all pixels lie between {low} and {high} of 255: images with so little contrast are hard to learn"
            )
        elif (most := self.manifest.get("most_pixels", (0, 255)))[1] - most[0] < _NARROW:
            said.append(
                f"all but 1 % of the pixels lie between {most[0]} and {most[1]} of 255: the images may be hard to see"
            )
        notes = self.manifest["converted"]
        if several := sorted(name for name, note in notes.items() if note.startswith("first of")):
            what = f"{len(several):,} file{'s hold' if len(several) > 1 else ' holds'} several pictures"
            example = f"{printable(several[0])}: {notes[several[0]].split(',')[0]}"
            said.append(f"{what}, of which the first is used, such as {example}")
        if high < _HALF and high - low >= _NARROW:
            said.append(f"no pixel is brighter than {high} of 255: if white is darker in these files, scale them")
        if "pixels" not in self.manifest and any("16 bits" in note for note in self.manifest["converted"].values()):
            said.append(
                f"16-bit pixels were scaled without a look at their range; to prepare them again, delete {self.path}"
            )
        return said

    def require_contrast(self) -> None:
        """Refuse, as a DataError, images that are all the same: nothing is learned from them, or compared."""
        low, high = self.manifest.get("pixels", (0, 255))
        if low == high:
            raise DataError(
                f"every pixel of all {len(self)} images is {low} of 255", "Look at the files, and give others."
            )
        images = np.load(self.path / _ARRAY, mmap_mode="r")
        if len(images) > 1 and all(np.array_equal(image, images[0]) for image in images):
            raise DataError(f"all {len(images)} images are the same", "Look at the files, and give others.")

    @property
    def split_rule(self) -> str:
        """How images were held out."""
        return str(self.manifest["split"])

    @property
    def n_train(self) -> int:
        return int(self.manifest["train"])

    @property
    def n_held_out(self) -> int:
        return int(self.manifest["shape"][0]) - self.n_train

    def __len__(self) -> int:
        return self.n_train

    def sheet(self, n: int) -> np.ndarray:
        """Up to n training images, evenly spread over the set, eight to a row: uint8 of shape (H, W, 3)."""
        images = np.load(self.path / _ARRAY, mmap_mode="r")[: self.n_train]
        chosen = images[np.linspace(0, len(images) - 1, min(n, len(images))).astype(int)]
        size, columns = images.shape[1] + 1, min(8, len(chosen))
        sheet = np.full((-(-len(chosen) // columns) * size + 1, columns * size + 1, 3), 128, np.uint8)
        for place, image in enumerate(chosen):
            top, left = (size * line + 1 for line in divmod(place, columns))
            sheet[top : top + size - 1, left : left + size - 1] = image
        return sheet

    def tensor(self) -> Tensor:
        """The images to train on, over the memory map: pages are read when they are indexed."""
        return self._all()[: self.n_train]

    def held_out(self) -> Tensor:
        """The images held out of training; empty where none are."""
        return self._all()[self.n_train :]

    def _all(self) -> Tensor:
        import torch  # preparing images needs no torch, and starts faster without

        array = np.load(self.path / _ARRAY, mmap_mode="r")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array)


def open_store(
    home: Home, data: DataSpec, source: Path | None, *, study: str, on_progress: OnProgress, say: Say
) -> ImageStore:
    """The store of these images, prepared now unless it is there already.

    ``source`` is a folder, zip, ``.npy`` or ``.npz``; None for data that come with a package, a function or a download.
    A DataError says that no data are given, no image is usable, the disk is too full, or the store is damaged.
    """
    return _open(home, find_material(home, data, source, study=study, say=say), on_progress, say)


def open_array_store(
    home: Home, images: Any, data: DataSpec, *, on_progress: OnProgress = lambda *_: None, say: Say = lambda _: None
) -> ImageStore:
    """As :func:`open_store`, for images that are Python values, whatever the ``source`` of ``data``.

    They are a uint8 array (N, H, W) or (N, H, W, 1 or 3); or a data set or iterable of images or (image, label) pairs,
    an image being a PIL image, a uint8 array, or a tensor (C, H, W), uint8 or in [0, 1].
    """
    return _open(home, of_object(data, images), on_progress, say)


def store_by_fingerprint(home: Home, fingerprint: str) -> ImageStore | None:
    """The store of the images that a study was run on, unverified; None where it was not prepared here, or is gone."""
    for path in sorted(home.data.glob(f"*/{_MANIFEST}")):
        try:
            store = ImageStore(path.parent, json.loads(path.read_text(encoding="utf-8")))
            if store.fingerprint == fingerprint and (store.path / _ARRAY).is_file():
                return store
        except (OSError, ValueError, KeyError):  # damaged: opening it by its name says so
            continue
    return None


def existing_store(home: Home, material: Material) -> ImageStore | None:
    """The store of these images if it was prepared, verified."""
    folder = _folder(home, material)
    return _opened(folder, material) if (folder / _MANIFEST).is_file() else None


def _open(home: Home, material: Material, on_progress: OnProgress, say: Say) -> ImageStore:
    folder = _folder(home, material)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not (folder / _MANIFEST).is_file():
            _build(folder, material, on_progress)
    store = _opened(folder, material)
    for name, why in list(store.rejected.items())[:20]:
        say(f"left out {name}: {why}")
    for sentence in store.warnings:
        say(sentence)
    if folder != _folder(home, material, former=False):
        say(f"an earlier version prepared these images, by its own rules; delete {folder} to prepare them again")
    if len(store.rejected) > 20:
        say(f"left out {len(store.rejected) - 20} more; all are named in {store.path / _MANIFEST}")
    return store


def _folder(home: Home, material: Material, *, former: bool = True) -> Path:
    """Where the store is, or will be; one that an earlier version made, which knew the same images otherwise, stays."""

    def of(identity: dict[str, Any]) -> Path:
        key = digest({**identity, "prep": asdict(material.prep)})
        return home.within("data", f"{material.label}-{material.prep.image_size}-{key}")

    folder = of(material.identity)
    if former and not (folder / _MANIFEST).is_file():
        return next((older for older in map(of, material.former()) if (older / _MANIFEST).is_file()), folder)
    return folder


def _opened(folder: Path, material: Material) -> ImageStore:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        unread = {"rejected": {**manifest["rejected"], **material.unread}}
        store = ImageStore(folder, {**manifest, **unread}, material.instead_of_celeba)
        _ = store.n_held_out, store.split_rule, store.rejected
        sound = _fingerprint(folder / _ARRAY, store.n_train) == store.fingerprint
    except (ValueError, KeyError, TypeError, IndexError, OSError):  # OSError: no array file any more
        sound = False
    if not sound:
        raise DataError(f"the image store {folder} is damaged", "Delete that folder; it is built again.")
    return store


def _build(folder: Path, material: Material, on_progress: OnProgress) -> None:
    prep, count = material.prep, material.count
    shape = (count, prep.image_size, prep.image_size, prep.channels)
    needed = int(np.prod(shape))
    free = shutil.disk_usage(folder.parent).free
    if free < needed + _RESERVE_BYTES:
        raise DataError(
            f"{folder.parent} has {free / 1e6:,.0f} MB free; the prepared images need {needed / 1e6:,.0f} MB",
            "Free some space, or set HARNESS_HOME to a larger disk.",
        )
    for stale in folder.parent.glob(f".{folder.name}.tmp-*"):  # a build that was killed; the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.tmp-{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        manifest = _write_array(temporary / _ARRAY, material, shape, on_progress)
        manifest["fingerprint"] = _fingerprint(temporary / _ARRAY, manifest["train"])
        atomic.write_text(temporary / _MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
        shutil.rmtree(folder, ignore_errors=True)  # without a manifest it is not a store
        temporary.replace(folder)
        atomic.sync_folder(folder.parent)
    except OSError as error:
        raise DataError(f"the image store could not be written: {error}", "Is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_array(
    path: Path, material: Material, shape: tuple[int, int, int, int], on_progress: OnProgress
) -> dict[str, Any]:
    """Write usable images one by one, in little memory; return the manifest."""
    rejected: dict[str, str] = {}
    notes: dict[str, str] = {}
    used = train = 0
    counts = np.zeros(256, np.int64)  # of pixels by value
    with path.open("w+b") as file:
        _write_header(file, shape)
        start = file.tell()
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not after an hour
            os.posix_fallocate(file.fileno(), 0, start + int(np.prod(shape)))
        n_train = material.n_train
        for done, (name, pixels, note) in enumerate(material.items(), start=1):
            if pixels is None:
                rejected[name] = note
            else:
                if note:
                    notes[name] = note
                file.write(np.ascontiguousarray(pixels).data)
                used += 1
                counts += np.bincount(pixels.ravel(), minlength=256)
                train += done <= n_train
            if done % CHUNK == 0 or done == shape[0]:
                on_progress(done, shape[0])
        if not train:
            name, why = next(iter(rejected.items()), ("", "no file"))
            raise DataError(f"none of {shape[0]} files is usable; the first, {printable(name)}: {printable(why)}")
        file.truncate()
        file.seek(0)
        _write_header(file, (used, *shape[1:]))
        assert file.tell() == start, "NumPy reserves room for the number of rows to change"
        file.flush()
        os.fsync(file.fileno())
    return {
        "shape": [used, *shape[1:]],
        "train": train,
        "source": material.label,
        "split": material.split().rule,
        "preparation": asdict(material.prep),
        "pixels": np.flatnonzero(counts)[[0, -1]].tolist(),
        "most_pixels": np.searchsorted(counts.cumsum(), np.array([0.005, 0.995]) * counts.sum()).tolist(),
        "scaled": "; ".join(material.scaled),
        "rejected": rejected,
        "converted": notes,
    }


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _fingerprint(path: Path, train: int) -> str:
    """sha256 of shape, pixels, and of where the held-out images begin; read in pieces, not mapped."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        total = hashlib.sha256(str(shape).encode())
        while piece := file.read(_PIECE_BYTES):
            total.update(piece)
    if train != shape[0]:
        total.update(f"train {train}".encode())
    return total.hexdigest()
