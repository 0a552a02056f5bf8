"""One page on one training: its health, samples, losses and scores, what was trained, and what to do with it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from harness.findings.headline import Headline
from harness.gan.hparams import FIELDS, HParams
from harness.report.page import png, spread, write_page
from harness.report.plots import losses, own_style
from harness.text import number
from harness.training.run_folder import RunFolder, grid_kimg

# Grids before the last: this many, two rows of images each.
_EARLIER, _ROWS = 5, 2
# Pictures are enlarged, pixel by pixel, while they stay narrower than this (px).
_WIDE = 560
# An animation has no more frames than this and none wider; a pixel of a GIF takes 1.5 bytes at most, for a code has up
# to 12 bits, and 0.1 for blocks, headers and palettes.
_FRAMES, _SIDE, _MOST_BYTES, _BYTES_A_PIXEL = 48, 265, 2_000_000, 1.6
_FRAME_MS, _LAST_MS = 250, 2000


@own_style()
def build_training_report(folder: Path, out: Path, verdict: Headline) -> Path:
    """Write ``report.md`` with figures into ``out`` from an ended training's folder; return its path."""
    run, defaults = RunFolder(folder), HParams()
    summary, curve = run.read_summary(), pd.DataFrame(run.read_curve())
    hparams = HParams.from_stored(summary["hparams"], folder.name)
    epoch, end = summary["epoch_kimg"], summary["trained_kimg"] * 1.01
    grids = [path for path in run.grids() if grid_kimg(path) <= end]
    size = hparams.image_size
    files: dict[str, bytes] = {}
    rows = []
    for place, path in enumerate(spread(grids[:-1], _EARLIER), start=1):
        files[file := f"grid-{place}.png"] = _enlarged(path, height=_ROWS * (size + 1) + 1)
        rows.append({"file": file, "at": _at(grid_kimg(path), epoch)})
    # A walk in the folder of a failed training is of an earlier, shorter one.
    walk = None if summary["failed"] else run.walk
    pictures = {"last.png": grids[-1] if grids else None, "real.png": run.real, "walk.png": walk}
    files |= {file: _enlarged(path) for file, path in pictures.items() if path is not None and path.is_file()}
    frames = [path for path in run.frames() if grid_kimg(path) <= end]
    if len(frames) > 1:
        files["training.gif"] = animation(frames, size)
    settings = [(name, getattr(hparams, name), getattr(defaults, name)) for name in FIELDS]
    context = {
        **summary,
        "headline": verdict,
        "rate": float(curve["images_per_s"].median()) if len(curve) else 0.0,
        "earlier": rows,
        "last": _at(grid_kimg(grids[-1]) if summary["failed"] else summary["trained_kimg"], epoch) if grids else "",
        "frames": len(spread(frames, _most_frames(size))),
        "files": files,
        "settings": settings,
        "differs": [(name, value) for name, value, default in settings if value != default],
        "totals": {name: sum(row["parameters"] for row in layers) for name, layers in summary["layers"].items()},
        "name": folder.name,
        "path": folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder,
    }
    return write_page(
        out,
        "training.md.j2",
        context,
        figures={"losses": losses(curve, epoch)} if len(curve) else {},
        files=files,
    )


def animation(frames: Sequence[Path], size: int) -> bytes:
    """A GIF of grids of images of ``size`` px, of as many of their first rows and columns as fit; below 2 MB always."""
    grids = [Image.open(path).convert("RGB") for path in spread(frames, _most_frames(size))]
    width, height = (min(_side(size), *sides) for sides in zip(*(grid.size for grid in grids), strict=True))
    first, *rest = [grid.crop((0, 0, width, height)).quantize(256) for grid in grids]
    buffer = io.BytesIO()
    durations = [_FRAME_MS] * len(rest) + [_LAST_MS]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)
    return buffer.getvalue()


def _side(size: int) -> int:
    """Of the part of a grid that is animated (px), its frame included."""
    return (_SIDE - 1) // (size + 1) * (size + 1) + 1


def _most_frames(size: int) -> int:
    return min(_FRAMES, int(_MOST_BYTES / _BYTES_A_PIXEL / _side(size) ** 2))


def _enlarged(path: Path, height: int | None = None) -> bytes:
    """A picture as PNG, its first ``height`` pixels or all, with each pixel as a square."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))[:height]
    times = max(1, _WIDE // pixels.shape[1])
    return png(Image.fromarray(pixels.repeat(times, 0).repeat(times, 1)))


def _at(kimg: float, epoch: float) -> str:
    """When a grid was drawn: ``epoch 3 (9.8 kimg)``."""
    if not kimg:
        return "before training"
    return f"epoch {number(round(kimg / epoch, 2))} ({number(kimg)} kimg)" if epoch else f"{number(kimg)} kimg"
