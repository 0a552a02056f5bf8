"""Sets of small images that come as arrays in a few files: MNIST and Fashion-MNIST, SVHN, CIFAR-10.

What is downloaded is compared with its published checksum. Files that a person brings are compared too where a checksum
of them is published (of idx files only the gzipped ones'); other content of the same format is taken, and that is said.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.data.archive import printable
from harness.data.downloads import into_place
from harness.data.pickles import PickledArray, unpickle_arrays
from harness.errors import DataError

Say = Callable[[str], None]

# The largest published file unpacks to 1.7 GB; more than this is a mistake, or made to fill the memory.
MAX_SET_BYTES = 2 * 2**30
_PIECE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """One file of a set: the names that it may have, and the name and md5 that it is published with."""

    names: tuple[str, ...]
    published: tuple[str, str]
    held_out: bool


@dataclass(frozen=True, slots=True)
class ArraySet:
    """A published set. ``read`` turns one file into uint8 images of shape (n, H, W, C)."""

    title: str
    folders: tuple[str, ...]
    files: tuple[ArrayFile, ...]
    read: Callable[[Path], np.ndarray]
    download: Callable[[Path, bool], None]
    page: str


def _idx(name: str, md5: str, *, held_out: bool = False) -> ArrayFile:
    dotted = name.replace("-idx3", ".idx3")
    return ArrayFile((name, f"{name}.gz", dotted, f"{dotted}.gz"), (f"{name}.gz", md5), held_out)


def _file(name: str, md5: str, *, held_out: bool = False) -> ArrayFile:
    return ArrayFile((name,), (name, md5), held_out)


def read_idx(path: Path) -> np.ndarray:
    """Images of an idx file, gzipped or not, read by torchvision."""
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    if path.suffix != ".gz":
        images = read_sn3_pascalvincent_tensor(str(path))
    else:
        with tempfile.NamedTemporaryFile() as unpacked, gzip.open(path) as packed:
            while piece := packed.read(_PIECE_BYTES):
                unpacked.write(piece)
                if unpacked.tell() > MAX_SET_BYTES:
                    raise ValueError(f"it unpacks to more than {MAX_SET_BYTES:,} bytes")
            unpacked.flush()
            images = read_sn3_pascalvincent_tensor(unpacked.name)
    if images.ndim != 3 or images.numel() == 0:
        raise ValueError(f"it holds values of shape {tuple(images.shape)}, not images")
    array: np.ndarray = images.numpy()
    if array.dtype != np.uint8:
        raise ValueError(f"it holds values of type {array.dtype}, not pixels of one byte")
    return array[..., None]


# MATLAB's types of numbers, with their sizes.
_NUMBERS = {"single": 4, "double": 8} | {
    f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def read_svhn(path: Path) -> np.ndarray:
    """Images of an SVHN .mat file, read by torchvision; it may hold arrays of numbers, and not too large ones."""
    from scipy.io import whosmat
    from torchvision.datasets import SVHN

    size = 0
    for name, shape, kind in whosmat(path):
        if kind not in _NUMBERS:
            raise ValueError(f"{name} is of type {kind}; arrays of numbers are read")
        size += math.prod(shape) * _NUMBERS[kind]
    if size > MAX_SET_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_SET_BYTES:,} bytes")

    class Local(SVHN):  # type: ignore[misc]
        # torchvision refuses every file but the published one; that check is made, and said, elsewhere.
        split_list = {"train": ["", path.name, _md5(path)]}  # noqa: RUF012

    images = Local(str(path.parent), split="train", download=False).data
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"X has shape {images.shape} and type {images.dtype}, not (H, W, 3, n) uint8")
    array: np.ndarray = images.transpose(0, 2, 3, 1)
    return array


def read_cifar10(path: Path) -> np.ndarray:
    """Images of one batch of CIFAR-10's Python version; nothing but arrays of bytes is unpickled."""
    with path.open("rb") as file:
        batch = unpickle_arrays(file)
    data = batch.get("data") if isinstance(batch, dict) else None
    rows = data.uint8() if isinstance(data, PickledArray) else None
    if rows is None or rows.ndim != 2 or rows.shape[1] != 3072:
        raise ValueError("its data are not uint8 rows of 3072 values")
    array: np.ndarray = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return array


def _torchvision(name: str, root: Path, **arguments: str) -> None:
    """Let torchvision download and check a set."""
    from torchvision import datasets

    getattr(datasets, name)(str(root), download=True, **arguments)


def _download_svhn(root: Path, held_out: bool) -> None:
    for split in ("train", "test")[: 1 + held_out]:
        _torchvision("SVHN", root, split=split)


def _download_cifar10(root: Path) -> None:
    """Without torchvision's class: it would unpickle what it downloaded."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(CIFAR10.url, str(root), filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)


SETS: dict[str, ArraySet] = {
    "mnist_idx": ArraySet(
        "MNIST",
        (".", "raw", "MNIST/raw"),
        (
            _idx("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            _idx("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3", held_out=True),
        ),
        read_idx,
        lambda root, _: _torchvision("MNIST", root),
        "http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion_mnist": ArraySet(
        "Fashion-MNIST",
        (".", "raw", "FashionMNIST/raw"),
        (
            _idx("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            _idx("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", held_out=True),
        ),
        read_idx,
        lambda root, _: _torchvision("FashionMNIST", root),
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "svhn": ArraySet(
        "SVHN",
        (".", "svhn", "SVHN"),
        (
            _file("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            _file("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", held_out=True),
        ),
        read_svhn,
        _download_svhn,
        "http://ufldl.stanford.edu/housenumbers/",
    ),
    "cifar10": ArraySet(
        "CIFAR-10",
        (".", "cifar-10-batches-py"),
        (
            _file("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            _file("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            _file("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            _file("data_batch_4", "634d18415352ddfa80567beed471001a"),
            _file("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            _file("test_batch", "40351d587109b95175f43aff81a1287e", held_out=True),
        ),
        read_cifar10,
        lambda root, _: _download_cifar10(root),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
}


def find_files(name: str, root: Path, *, held_out: bool) -> list[tuple[Path, ArrayFile]]:
    """The files of a set below ``root``, training files first.

    Raises:
        DataError: the folder or one of the files is missing.
    """
    published = SETS[name]
    if not root.is_dir():
        raise DataError(f"no such folder: {root}", f"Pass the folder that holds {published.title}'s files with DATA=.")
    wanted = [file for file in published.files if held_out or not file.held_out]
    found: list[tuple[Path, ArrayFile]] = []
    for file in wanted:
        places = [root / folder / name for folder in published.folders for name in file.names]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise DataError(
                f"{root} lacks {file.names[0]} of {published.title}",
                f"Looked in it and in its {' and '.join(published.folders[1:])}. Needed are "
                f"{', '.join(file.names[0] for file in wanted)}, as torchvision leaves them; see {published.page}.",
            )
        found.append((path, file))
    return found


def download(name: str, root: Path, *, held_out: bool, say: Say) -> None:
    """Have torchvision download a set into ``root`` and compare it with its checksums, unless it is there.

    Raises:
        DataError: it cannot be downloaded, or is not what was published.
    """
    published = SETS[name]

    def there() -> bool:
        try:
            return bool(find_files(name, root, held_out=held_out))
        except DataError:
            return False

    if there():
        return
    say(f"downloading {published.title} from its page, {published.page}")
    names = ", ".join(file.names[0] for file in published.files if held_out or not file.held_out)
    into_place(
        root,
        there=there,
        fetch=lambda folder: published.download(folder, held_out),
        title=published.title,
        hint=f"Get {names} from {published.page} and pass their folder with DATA=/path/to/folder.",
    )


def load(name: str, path: Path, file: ArrayFile, say: Say) -> np.ndarray:
    """The images of one file, uint8, shape (n, H, W, C).

    Raises:
        DataError: it is damaged, or not of its format.
    """
    published = SETS[name]
    official_name, md5 = file.published
    if path.name == official_name and _md5(path) != md5:
        say(f"{path.name} is not the published file of {published.title} (its md5 differs); used as it is")
    try:
        return published.read(path)
    except Exception as error:  # each reader's library has errors of its own
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{path} is no readable file of {published.title}: {printable(first) or type(error).__name__}",
            f"Download it again from {published.page}.",
        ) from None


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
