"""One image file to square uint8 pixels: decoded fully, converted, cropped and resized with antialiasing."""

from __future__ import annotations

import io
import re
import resource
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError, features

from harness.data.sources import HEAD_BYTES, MAX_FILE_BYTES, opened
from harness.errors import DataError
from harness.spec.tables import ALIGNED, FACE, Crop, DataSpec

try:
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
except ImportError:
    pillow_heif = None  # type: ignore[assignment]

# More pixels than this in one file are refused (a decompression bomb, or a scan that would fill the memory).
MAX_PIXELS = 100_000_000
# Decoding one file takes at most this much memory (1.25 GiB), plus the file's own bytes; else it is left out.
MAX_DECODE_BYTES = 5 * 2**28
# What a decoding process may ask for besides: the files' own bytes, results, and the stacks of libraries' threads.
_ROOM_BYTES = 2**31
# Bytes per pixel at most, until the pixels are cropped and plain: measured for every mode that Pillow reads. WebP's
# library keeps two canvases and copies them; PPM's decoder is Python's; TIFF's strips may be the whole image; AVIF's
# and HEIC's libraries keep planes of 16 bits.
_BYTES_PER_PIXEL = {
    "JPEG": 12,
    "PNG": 9,
    "BMP": 9,
    "GIF": 12,
    "TIFF": 16,
    "PPM": 16,
    "WEBP": 24,
    "AVIF": 24,
    "HEIF": 24,
}
# Grey, palettes, and black and white take at most 8, whatever the format.
_SMALL_MODES = ("1", "L", "P")
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_SAMPLE_FORMAT, _SIGNED = 339, 2
# Pixels that are converted at a time.
_STRIP_PIXELS = 2**20
# Pillow goes by content, and knows formats that start other programs (EPS) or hold images larger than they say (ICO).
# AVIF is read where Pillow was built with it, HEIC with the extra "heic".
_MISSING = {kind for kind, there in {"AVIF": features.check("avif"), "HEIF": pillow_heif}.items() if not there}
FORMATS = tuple(kind for kind in _BYTES_PER_PIXEL if kind not in _MISSING)
# The mark of the harness's own pictures (sheets, sample grids, samples), which are never trained on.
MADE_BY = "DCGAN sweep harness"
# First bytes of formats of 8 bits, or read as 8: most sets need no look at their range.
_OF_8_BITS = re.compile(rb"\xff\xd8|GIF8|RIFF|BM|.{4}ftyp", re.S)
# Modes of grey pixels of more than 8 bits, and the white of 16 bits.
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")
WHITE = 65535
# Few photographs of 16 bits are darker than white of 12 bits: where more than this share are, they may be of 12 bits.
_DARK = 0.05
# Pictures in one file that are counted.
_COUNTED = 1000
# The lowest and the highest value of pixels, and whether they are colour, which Pillow cuts to the upper 8 of 16 bits.
Range = tuple[int, int, bool]
# The pixels of an image and a note on what was converted, or None and why it is left out.
Prepared = tuple[np.ndarray | None, str]


class Rejected(Exception):
    """This file cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How files become pixels; part of a store's identity. Pillow's filters antialias."""

    image_size: int
    channels: int
    crop: Crop = "square"
    resample: str = "bicubic"
    sharpen: float = 1.0
    decoder: str = f"4, Pillow {PIL.__version__}"

    @classmethod
    def of(cls, data: DataSpec) -> Preparation:
        """What a study's data section asks for."""
        return cls(
            image_size=data.image_size,
            channels=data.channels,
            crop=data.crop,
            resample=data.resample or "bicubic",
            sharpen=data.sharpen or 1.0,
        )

    @property
    def keeps_square(self) -> bool:
        """Whether a square image of the target's size stays as it is."""
        return self.sharpen == 1.0 and self.crop in ("square", "face", "after_resize", "none", self.image_size)


def decode(payload: bytes, prep: Preparation, white: int = WHITE) -> tuple[np.ndarray, str]:
    """Pixels of shape (size, size, channels) and a note on what was converted, empty for a plain image.

    ``white`` is the value of white in images of 16 bits.
    """
    image, frames = _loaded(payload)
    count = f"more than {_COUNTED:,}" if frames > _COUNTED else frames
    notes = [f"first of {count} frames"] if frames > 1 else []
    # Pillow turns these over where they have 8 bits, and only there.
    negative = image.mode in DEEP and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    image = _cut(image, prep, notes)  # replaces the whole, which is not kept
    pixels = fit(_plain(image, prep.channels, notes, white), prep)
    return 255 - pixels if negative else pixels, ", ".join(notes)


def deep_range(payload: bytes) -> Range | None:
    """The range of an image of more than 8 bits; None if it has 8, or cannot be used."""
    try:
        image, _ = _loaded(payload, deep=True)
    except Rejected:
        return None
    return None if image is None else range_of(image)


def range_of(image: Image.Image) -> Range | None:
    """Of an image of more than 8 bits that is loaded; None where its pixels have no range."""
    if image.mode == "F":
        return None
    if image.mode in DEEP:
        values = np.asarray(image)
        return int(values.min()), int(values.max()), False
    bands = zip(image.getbands(), np.reshape(image.getextrema(), (-1, 2)).tolist(), strict=True)
    return 0, 257 * max(high for band, (_, high) in bands if band != "A"), True


def _loaded(payload: bytes, *, deep: bool = False) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image: Image.Image = Image.open(io.BytesIO(payload), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Rejected(f"{width}x{height} px is more than {MAX_PIXELS:,} pixels")
            of_tiff = getattr(image, "tag_v2", {})  # a tile, which may be larger than the image, is unpacked whole
            pixels = max(width * height, of_tiff.get(_TILE_WIDTH, 0) * of_tiff.get(_TILE_HEIGHT, 0))
            if (needed := pixels * bytes_per_pixel(image.format or "", image.mode)) > MAX_DECODE_BYTES:
                what = f"{width}x{height} px of {image.format} may take {needed / 2**20:,.0f} MiB to decode"
                raise Rejected(f"{what}, more than {MAX_DECODE_BYTES / 2**20:,.0f}")
            if image.mode not in DEEP and _SIGNED in of_tiff.get(_SAMPLE_FORMAT, ()):
                raise Rejected("signed pixels have no known black and white")
            if image.info.get("Software") == MADE_BY:
                raise Rejected("a picture that the harness made")
            if deep and image.mode not in DEEP and ";16" not in str(getattr(image, "tile", "")):
                return None, 1
            frames = _frames(image)
            image.load()
        except Rejected:
            raise
        except UnidentifiedImageError:  # its own text names an object in memory
            raise Rejected("unreadable: not an image, or cut off in its header") from None
        except Exception as error:
            raise Rejected(_unreadable(error)) from None
    return image, frames


def _frames(image: Image.Image) -> int:
    """How many pictures a file holds; of a TIFF's, a chain that takes quadratic time, one more than are counted."""
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1)
    found = 1
    with suppress(EOFError):
        while found <= _COUNTED:  # one by one: Pillow takes a longer way for the number of pictures
            image.seek(found)
            found += 1
    image.seek(0)
    return found


def _unreadable(error: Exception) -> str:
    return f"unreadable: {'it takes too much memory' if isinstance(error, MemoryError) else error}"


def size_of(root: Path, member: str) -> tuple[int, int] | None:
    """(width, height) of a file of a folder or zip, by its header; None where it is not an image that is read."""
    with suppress(Exception), warnings.catch_warnings(), limited_memory():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(_content(root, root.is_file(), member)), formats=FORMATS).size
    return None


def bytes_per_pixel(kind: str, mode: str) -> int:
    """The most bytes for each pixel that decoding, cropping and conversion take."""
    return 8 if mode in _SMALL_MODES else _BYTES_PER_PIXEL.get(kind, 16)


def image_to_pixels(image: Image.Image, prep: Preparation) -> tuple[np.ndarray, str]:
    """As :func:`decode`, for an image that is loaded."""
    notes: list[str] = []
    return fit(_plain(_cut(image, prep, notes), prep.channels, notes, WHITE), prep), ", ".join(notes)


def _cut(image: Image.Image, prep: Preparation, notes: list[str]) -> Image.Image:
    """Turned as its EXIF says, and cropped: before the pixels are converted, which takes memory for each of them."""
    if image.getexif().get(0x0112, 1) != 1:
        notes.append("turned as its EXIF says")
        image = ImageOps.exif_transpose(image)
    if too_small := smaller_than(*image.size, prep):
        raise Rejected(too_small)
    if isinstance(prep.crop, tuple):
        left, top, wide, high = prep.crop
        return image.crop((left, top, left + wide, top + high))
    if prep.crop in ("none", "after_resize"):
        return image
    # Cropped before it is resized: resize(box=…) would let pixels outside the box bleed in.
    if isinstance(prep.crop, int):
        return _centre(image, prep.crop)
    return _centre(image, FACE if prep.crop == "face" and image.size == ALIGNED else min(image.size))


def smaller_than(width: int, height: int, prep: Preparation) -> str:
    """Why an image of this size (px) cannot be prepared without enlarging it, or an empty string."""
    needed = (prep.image_size,) * 2
    if isinstance(prep.crop, int):
        needed = (prep.crop,) * 2
    elif isinstance(prep.crop, tuple):
        left, top, wide, high = prep.crop
        needed = (left + wide, top + high)
    if width >= needed[0] and height >= needed[1]:
        return ""
    shown = f"{needed[0]} px" if needed[0] == needed[1] else f"{needed[0]}x{needed[1]} px"
    return f"{width}x{height} px is smaller than {shown}"


def fit(image: Image.Image, prep: Preparation) -> np.ndarray:
    """Resize and sharpen a grey or RGB image that is cropped; uint8, shape (image_size, image_size, channels)."""
    size, how = prep.image_size, Image.Resampling[prep.resample.upper()]
    if prep.crop == "after_resize":
        # As torchvision's Resize and CenterCrop, rounding included.
        short = min(image.size)
        image = image.resize((int(size * image.width / short), int(size * image.height / short)), how)
        image = _centre(image, size)
    if image.size != (size, size):
        image = image.resize((size, size), how)
    if prep.sharpen != 1.0:
        image = ImageEnhance.Sharpness(image).enhance(prep.sharpen)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, prep.channels)


def _centre(image: Image.Image, side: int) -> Image.Image:
    if image.size == (side, side):
        return image
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _plain(image: Image.Image, channels: int, notes: list[str], white: int) -> Image.Image:
    """8-bit grey or RGB, with transparency laid over white; a strip at a time, as conversions take memory."""
    rows = max(1, _STRIP_PIXELS // image.width)
    wanted = "L" if channels == 1 else "RGB"
    if rows < image.height and (image.mode != wanted or "transparency" in image.info):
        plain, of_each = Image.new(wanted, image.size), list[str]()
        for top in range(0, image.height, rows):
            of_each = []
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            plain.paste(_plain(strip, channels, of_each, white), (0, top))
        notes += of_each
        return plain
    if image.mode in DEEP:
        values = np.asarray(image).astype(np.float64)
        if values.min() < 0 or values.max() > white:
            raise Rejected(f"pixels between {values.min():,.0f} and {values.max():,.0f} have no known black and white")
        notes.append(f"{white.bit_length()} bits to 8")
        image = Image.fromarray(np.clip(np.round(values * (255 / white)), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise Rejected("floating-point pixels have no known range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        notes.append("transparency over white")
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(paper, image).convert("RGB")
    if image.mode not in (wanted, "RGB") or (image.mode == "RGB" and wanted == "L"):
        notes.append(f"{image.mode} to {wanted}")
    try:
        return image.convert(wanted)
    except ValueError as error:  # LAB is not converted
        raise Rejected(str(error)) from None


def limit_memory(more: int = MAX_DECODE_BYTES + _ROOM_BYTES) -> None:
    """On Linux, limit this process's memory to what decoding one file may take, or to ``more`` bytes more than now."""
    with suppress(OSError, StopIteration, ValueError):  # ValueError: it has a lower limit already
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        taken = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (taken + more, hard))


@contextmanager
def limited_memory(more: int = MAX_DECODE_BYTES + _ROOM_BYTES) -> Iterator[None]:
    """:func:`limit_memory` for a while, in a process that has other things to do."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_memory(more)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def decode_chunk(
    root: Path, is_zip: bool, members: tuple[str, ...], prep: Preparation, white: int = WHITE
) -> list[Prepared]:
    """Decode files of a folder or zip, in order."""
    results: list[Prepared] = []
    for member in members:
        try:
            results.append(decode(_content(root, is_zip, member), prep, white))
        except Rejected as rejected:
            results.append((None, str(rejected)))
        except Exception as error:  # damaged and encrypted members raise whatever their decoder raises
            results.append((None, _unreadable(error)))
    return results


def deep_ranges(root: Path, is_zip: bool, members: tuple[str, ...]) -> list[Range]:
    """:func:`deep_range` of those files that have one."""
    ranges: list[Range | None] = []
    for member in members:
        with suppress(Exception):  # decode_chunk says why
            if not _OF_8_BITS.match(_head(root, is_zip, member)):
                ranges.append(deep_range(_content(root, is_zip, member)))
    return [each for each in ranges if each]


def white_of(ranges: Sequence[Range]) -> tuple[int, str]:
    """The white of images of more than 8 bits, by the range of all of them; and a sentence if it is not the format's.

    Microscopes and scanners keep 10, 12 or 14 bits in 16, and label tools 8 in 32. A DataError refuses the rest.
    """
    low, high = min((low for low, _, _ in ranges), default=0), max((high for _, high, _ in ranges), default=WHITE)
    bits = next((bits for bits in (8, 10, 12, 14, 16) if high < 2**bits), 0)
    if not high or (bits == 16 and low >= 0):
        dark = sum(most < 2**12 for _, most, _ in ranges)
        said = (
            f"{dark:,} of {len(ranges):,} images of more than 8 bits have no value above 4,095, and white is {WHITE:,}"
        )
        return WHITE, f"{said}: if those are of 12 bits, they become nearly black" if dark > _DARK * len(ranges) else ""
    between = f"the pixels of {len(ranges):,} images of more than 8 bits lie between {low:,} and {high:,}"
    if low < 0 or not bits or high < 64 or any(colour for _, _, colour in ranges):
        raise DataError(
            f"{between}: where black and white are in this range is unknown",
            "Save them with 8 bits, black as 0 and white as 255.",
        )
    return 2**bits - 1, f"{between}: taken as {bits} bits, white is {2**bits - 1:,}"


def _head(root: Path, is_zip: bool, member: str) -> bytes:
    if is_zip:
        archive = opened(root)
        return archive.head(archive.getinfo(member))
    with (root / member).open("rb") as file:
        return file.read(HEAD_BYTES)


def _content(root: Path, is_zip: bool, member: str) -> bytes:
    if is_zip:
        archive = opened(root)
        return archive.payload(archive.getinfo(member))
    path = root / member
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise Rejected(f"{size / 2**20:,.0f} MiB are more than {MAX_FILE_BYTES // 2**20} MiB")
    return path.read_bytes()
