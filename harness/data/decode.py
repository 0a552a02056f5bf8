"""One image file to square uint8 pixels: decoded fully, converted, cropped and resized with antialiasing."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

from harness.data.sources import MAX_FILE_BYTES, opened
from harness.spec.tables import Crop, DataSpec

# More pixels than this in one file are refused (a decompression bomb, or a scan that would fill the memory).
MAX_PIXELS = 100_000_000
# Pillow goes by content, and knows formats that start other programs (EPS) or hold images larger than they say (ICO).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
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
        return self.sharpen == 1.0 and self.crop in ("square", "after_resize", "none", self.image_size)


def decode(payload: bytes, prep: Preparation) -> tuple[np.ndarray, str]:
    """Pixels of shape (size, size, channels) and a note on what was converted, empty for a plain image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image: Image.Image = Image.open(io.BytesIO(payload), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Rejected(f"{width}x{height} px is more than {MAX_PIXELS:,} pixels")
            frames = getattr(image, "n_frames", 1)
            image.load()
        except Rejected:
            raise
        except UnidentifiedImageError:  # its own text names an object in memory
            raise Rejected("unreadable: not an image, or cut off in its header") from None
        except Exception as error:
            raise Rejected(f"unreadable: {error}") from None
    return image_to_pixels(image, prep, [f"first of {frames} frames"] if frames > 1 else [])


def image_to_pixels(image: Image.Image, prep: Preparation, notes: list[str]) -> tuple[np.ndarray, str]:
    """As :func:`decode`, for an image that is loaded; ``notes`` gets what was converted."""
    turned = ImageOps.exif_transpose(image)
    if turned is not image and image.getexif().get(0x0112, 1) != 1:
        notes.append("turned as its EXIF says")
    if too_small := smaller_than(*turned.size, prep):
        raise Rejected(too_small)
    return fit(_plain(turned, prep.channels, notes), prep), ", ".join(notes)


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
    """Crop, resize and sharpen a grey or RGB image; uint8, shape (image_size, image_size, channels)."""
    size, how = prep.image_size, Image.Resampling[prep.resample.upper()]
    if prep.crop == "after_resize":
        # As torchvision's Resize and CenterCrop, rounding included.
        short = min(image.size)
        image = image.resize((int(size * image.width / short), int(size * image.height / short)), how)
        image = _centre(image, size)
    elif isinstance(prep.crop, tuple):
        left, top, wide, high = prep.crop
        image = image.crop((left, top, left + wide, top + high))
    elif prep.crop != "none":
        # Cropped first: resize(box=…) would let pixels outside the box bleed in.
        image = _centre(image, min(image.size) if prep.crop == "square" else int(prep.crop))
    if image.size != (size, size):
        image = image.resize((size, size), how)
    if prep.sharpen != 1.0:
        image = ImageEnhance.Sharpness(image).enhance(prep.sharpen)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, prep.channels)


def _centre(image: Image.Image, side: int) -> Image.Image:
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _plain(image: Image.Image, channels: int, notes: list[str]) -> Image.Image:
    """8-bit grey or RGB, with transparency laid over white."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        values = np.asarray(image).astype(np.float64)
        notes.append("16 bits to 8")
        image = Image.fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise Rejected("floating-point pixels have no known range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        notes.append("transparency over white")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    wanted = "L" if channels == 1 else "RGB"
    if image.mode not in (wanted, "RGB") or (image.mode == "RGB" and wanted == "L"):
        notes.append(f"{image.mode} to {wanted}")
    return image.convert(wanted)


def decode_chunk(root: Path, is_zip: bool, members: tuple[str, ...], prep: Preparation) -> list[Prepared]:
    """Decode files of a folder or zip, in order."""
    archive = opened(root) if is_zip else None
    results: list[Prepared] = []
    for member in members:
        try:
            payload = archive.payload(archive.getinfo(member)) if archive else _content(root / member)
            results.append(decode(payload, prep))
        except Rejected as rejected:
            results.append((None, str(rejected)))
        except Exception as error:  # damaged and encrypted members raise whatever their decoder raises
            results.append((None, f"unreadable: {error}"))
    return results


def _content(path: Path) -> bytes:
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise Rejected(f"{size / 2**20:,.0f} MiB are more than {MAX_FILE_BYTES // 2**20} MiB")
    return path.read_bytes()
