"""One image file to square uint8 pixels: decoded fully, converted, cropped and resized with antialiasing."""

from __future__ import annotations

import io
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

# More pixels than this in one file are refused (a decompression bomb, or a scan that would fill the memory).
MAX_PIXELS = 100_000_000


class Rejected(Exception):
    """This file cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How files become pixels; part of a store's identity. Resizing is Pillow's bicubic, which antialiases."""

    image_size: int
    channels: int
    crop: str | int = "square"
    resample: str = "bicubic, antialiased"
    decoder: str = f"2, Pillow {PIL.__version__}"


def decode(payload: bytes, prep: Preparation) -> tuple[np.ndarray, str]:
    """Pixels of shape (size, size, channels) and a note on what was converted, empty for a plain image.

    Raises:
        Rejected: unreadable, truncated, smaller than the target, or absurdly large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image: Image.Image = Image.open(io.BytesIO(payload))
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Rejected(f"{width}x{height} px is more than {MAX_PIXELS:,} pixels")
            frames = getattr(image, "n_frames", 1)
            image.load()
        except Rejected:
            raise
        except Exception as error:
            raise Rejected(f"unreadable: {error}") from None
    crop = prep.image_size if prep.crop == "square" else int(prep.crop)
    if min(image.size) < crop:
        raise Rejected(f"{width}x{height} px is smaller than {crop} px")
    notes = [f"first of {frames} frames"] if frames > 1 else []
    image = _oriented(image, notes)
    image = _plain(image, prep.channels, notes)
    side = min(image.size) if prep.crop == "square" else int(prep.crop)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    size = (prep.image_size, prep.image_size)
    # Cropped first: resize(box=…) would let pixels outside the box bleed in.
    resized = image.crop((left, top, left + side, top + side)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, dtype=np.uint8)
    return pixels.reshape(prep.image_size, prep.image_size, prep.channels), ", ".join(notes)


def _oriented(image: Image.Image, notes: list[str]) -> Image.Image:
    turned = ImageOps.exif_transpose(image)
    if turned is not image and image.getexif().get(0x0112, 1) != 1:
        notes.append("turned as its EXIF says")
    return turned


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


def decode_chunk(
    root: Path, is_zip: bool, members: tuple[str, ...], prep: Preparation
) -> list[tuple[np.ndarray | None, str]]:
    """Decode files of a folder or zip, in order: (pixels, note) a file, or (None, why it was rejected)."""
    archive = zipfile.ZipFile(root) if is_zip else None
    results: list[tuple[np.ndarray | None, str]] = []
    try:
        for member in members:
            try:
                payload = archive.read(member) if archive else (root / member).read_bytes()
                results.append(decode(payload, prep))
            except Rejected as rejected:
                results.append((None, str(rejected)))
            except Exception as error:  # damaged and encrypted members raise whatever their decoder raises
                results.append((None, f"unreadable: {error}"))
    finally:
        if archive:
            archive.close()
    return results
