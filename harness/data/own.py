"""Your own images: NumPy arrays and their files, data sets, and functions that return or yield images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.data.arrays import MAX_SET_BYTES
from harness.data.decode import DEEP, WHITE, Preparation, Prepared, Range, Rejected, image_to_pixels, range_of, white_of
from harness.data.sources import Archive
from harness.errors import DataError, HarnessError, first_line

_HINT = (
    "An image is a PIL image, a uint8 array (H, W) or (H, W, 1 or 3), or a tensor (C, H, W), uint8 or in [0, 1]; "
    "a data set may give (image, label) pairs."
)


@dataclass(frozen=True, slots=True)
class OwnImages:
    """``pixels(i)`` prepares image i. ``ranges`` are those of pictures of more than 8 bits that were prepared."""

    count: int
    pixels: Callable[[int], Prepared]
    ranges: dict[str, Range] = field(default_factory=dict)

    def require_range(self, where: str) -> str:
        """A DataError refuses pictures of fewer bits than their format has: code that gives them can scale them.

        A sentence where some may be of fewer.
        """
        white, sentence = white_of(list(self.ranges.values()))
        if white != WHITE:
            raise DataError(f"{where}: {sentence}", "Give them with 8 bits, black as 0 and white as 255.")
        return sentence


def own_images(images: Any, prep: Preparation, where: str) -> OwnImages:
    """Images of an array (N, H, W[, 1 or 3]) uint8, a data set or an iterable, prepared when they are asked for.

    Those of an iterable without a length, such as a generator, are all prepared now and held in memory. A DataError
    about something that is not an image says ``where``.
    """
    if isinstance(images, np.ndarray):
        _check_array(images, where)
    if isinstance(images, (str, bytes, Mapping)) or not (
        isinstance(images, Iterable) or hasattr(images, "__getitem__")
    ):
        raise DataError(f"{where}: {type(images).__name__} is not a set of images", _HINT)
    ranges: dict[str, Range] = {}
    if hasattr(images, "__len__") and hasattr(images, "__getitem__"):

        def pixels(index: int) -> Prepared:
            try:
                picture = images[index]
            except Exception as error:  # the user's code
                raise user_code_failed(f"{where}[{index}]", error) from error
            return _pixels(picture, prep, f"{where}[{index}]", ranges)

        return OwnImages(len(images), pixels, ranges)
    prepared: list[Prepared] = []
    try:
        for picture in images:
            prepared.append(_pixels(picture, prep, f"{where}[{len(prepared)}]", ranges))
    except HarnessError:
        raise
    except Exception as error:  # the user's code
        raise user_code_failed(f"{where}[{len(prepared)}]", error) from error
    return OwnImages(len(prepared), prepared.__getitem__, ranges)


def read_array(path: Path) -> np.ndarray:
    """The images of an ``.npy`` file, memory-mapped, or of an ``.npz``: its only array, or the one named ``images``."""
    if not path.is_file():
        raise DataError(f"no such file: {path}", "Pass DATA=/path/to/images.npy or .npz.")
    array = numpy_file(path, "images", "Save a uint8 array with np.save.")
    _check_array(array, str(path))
    return array


def numpy_file(path: Path, name: str, hint: str) -> np.ndarray:
    """The array of an ``.npy`` file, memory-mapped, or of an ``.npz``: its only one, or the one of this name.

    A DataError, with a hint, where there is none; Python objects are not read.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode="r") if path.suffix == ".npy" else _read_npz(path, name)
    except DataError:
        raise
    except Exception as error:  # zipfile's, zlib's and NumPy's own
        first = first_line(error)
        if "pickle" in first or "Python objects" in first:
            first = "it holds Python objects, which are not read"
        raise DataError(f"{path} is not a readable NumPy file: {first}", hint) from None
    return array


def user_code_failed(what: str, error: Exception) -> DataError:
    """An error that the user's code raised, as a sentence."""
    return DataError(f"{what} failed: {type(error).__name__}: {error}", "It is in the code that gives the images.")


def _read_npz(path: Path, wanted: str) -> np.ndarray:
    with Archive(path) as archive:
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
    name = next(iter(sizes)) if len(sizes) == 1 else wanted
    if name not in sizes:
        raise DataError(
            f"{path} holds {', '.join(sorted(sizes)) or 'nothing'}", f"Name its array of {wanted} `{wanted}`."
        )
    if sizes[name] > MAX_SET_BYTES:
        problem = f"{path}: {name} unpacks to more than {MAX_SET_BYTES:,} bytes"
        raise DataError(problem, "Save it with np.save: an .npy file is read in place.")
    with np.load(path) as arrays:
        array: np.ndarray = arrays[name]
    return array


def _check_array(array: np.ndarray, where: str) -> None:
    if array.dtype != np.uint8:
        raise DataError(f"{where} has values of type {array.dtype}, not uint8", "Save pixels from 0 to 255 as uint8.")
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)) or 0 in array.shape:
        raise DataError(f"{where} has shape {array.shape}", "Images have shape (N, H, W) or (N, H, W, 1 or 3).")


def _pixels(picture: Any, prep: Preparation, where: str, ranges: dict[str, Range]) -> Prepared:
    if isinstance(picture, (tuple, list)) and len(picture):
        picture = picture[0]  # (image, label)
    if hasattr(picture, "detach") and hasattr(picture, "is_floating_point"):
        picture = _tensor_to_array(picture, where)
    try:
        if isinstance(picture, Image.Image):
            prepared = image_to_pixels(picture, prep)
            if picture.mode in DEEP and (found := range_of(picture)):
                ranges[where] = found
            return prepared
        if not isinstance(picture, np.ndarray):
            raise DataError(f"{where} is of type {type(picture).__name__}, not an image", _HINT)
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (1, 3))):
            raise DataError(f"{where} has shape {picture.shape} and type {picture.dtype}", _HINT)
        side, channels = prep.image_size, picture.shape[2] if picture.ndim == 3 else 1
        # What is prepared already need not pass through Pillow, which takes seconds for published sets.
        if picture.shape[:2] == (side, side) and channels == prep.channels and prep.keeps_square:
            return np.array(picture).reshape(side, side, channels), ""  # a copy: the caller may use its buffer again
        flat = picture[..., 0] if picture.ndim == 3 and channels == 1 else picture
        return image_to_pixels(Image.fromarray(np.ascontiguousarray(flat)), prep)[0], ""
    except Rejected as rejected:
        return None, str(rejected)
    except OSError as error:  # a file that PIL opens only now
        return None, f"unreadable: {error}"


def _tensor_to_array(tensor: Any, where: str) -> np.ndarray:
    """A tensor (H, W), (C, H, W) or (H, W, C), uint8 or in [0, 1], as uint8 of shape (H, W) or (H, W, C)."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        if not bool(((tensor >= 0) & (tensor <= 1)).all()):
            raise DataError(f"{where} has values outside [0, 1]", "Undo the normalisation, or give uint8.")
        tensor = (tensor.double() * 255).round().byte()
    array: np.ndarray = tensor.numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in (1, 3) else array
