"""One page on one training: what was trained, how its losses went, its samples and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.gan.hparams import HParams
from harness.report.page import write_page
from harness.report.plots import losses
from harness.text import number
from harness.training.run_folder import RunFolder, grid_kimg

_GRIDS_SHOWN = 4
# Shown whether or not they differ from the defaults.
_ALWAYS = ("image_size", "batch_size", "lr_g", "lr_d", "beta1", "beta2", "bn", "activation_g", "activation_d", "latent")


def changed_hparams(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that a reader looks for, and those that differ from the defaults."""
    defaults = HParams().to_dict()
    return {name: value for name, value in hparams.items() if name in _ALWAYS or value != defaults.get(name)}


def build_training_report(folder: Path, out: Path) -> Path:
    """Write ``report.md`` with figures into ``out`` from a finished training's folder; return its path."""
    run = RunFolder(folder)
    summary, curve = run.read_summary(), pd.DataFrame(run.read_curve())
    grids = [path for path in run.grids() if grid_kimg(path) <= summary["trained_kimg"] * 1.01]
    if len(grids) > _GRIDS_SHOWN:  # the first, the last, and some between
        grids = [grids[round(i * (len(grids) - 1) / (_GRIDS_SHOWN - 1))] for i in range(_GRIDS_SHOWN)]
    files = {f"grid-{place}.png": path for place, path in enumerate(grids, start=1)}
    context = {
        **summary,
        "rate": float(curve["images_per_s"].median()) if len(curve) else 0.0,
        "grids": [{"file": file, "title": f"{number(grid_kimg(path))} kimg"} for file, path in files.items()],
        "changed": changed_hparams(summary["hparams"]),
        "folder": folder.name,
    }
    return write_page(
        out,
        "training.md.j2",
        context,
        figures={"losses": losses(curve)} if len(curve) else {},
        files={file: path.read_bytes() for file, path in files.items()},
        owned=("losses.png", "grid-*.png"),
    )
