"""One page on one training: what was trained, how its losses went, its samples and its scores."""

from __future__ import annotations

from pathlib import Path

from harness.findings.frames import curve_frame
from harness.gan.hparams import HParams
from harness.report.page import Page
from harness.report.plots import losses
from harness.text import number
from harness.training.run_folder import RunFolder, grid_kimg

# Sample grids shown.
_SHOWN = 4


def build_training_report(folder: Path, out: Path) -> Path:
    """Write ``report.md`` with figures into ``out`` from a finished training's folder: same files, same bytes.

    Returns:
        The path of ``report.md``.
    """
    run = RunFolder(folder)
    summary = run.read_summary()
    curve = curve_frame(run.curve)
    defaults = HParams().to_dict()
    grids = _grids(run, summary["trained_kimg"])
    files = {f"grid-{place}.png": path for place, path in enumerate(grids, start=1)}
    page = Page(
        template="training.md.j2",
        context={
            **summary,
            "rate": float(curve["images_per_s"].median()) if len(curve) else 0.0,
            "grids": [{"file": file, "title": f"{number(grid_kimg(path))} kimg"} for file, path in files.items()],
            "changed": {k: v for k, v in summary["hparams"].items() if k in _ALWAYS or v != defaults[k]},
            "folder": folder.name,
            "environment": sorted(summary["environment"].items()),
        },
        figures={"losses": losses(curve)} if len(curve) else {},
        files={file: path.read_bytes() for file, path in files.items()},
        owned=("losses.png", "grid-*.png"),
    )
    return page.write(out)


# Shown whether or not they differ from the defaults.
_ALWAYS = ("image_size", "batch_size", "lr_g", "lr_d", "beta1", "beta2", "bn", "activation_g", "activation_d", "latent")


def _grids(run: RunFolder, trained_kimg: float) -> list[Path]:
    """The first sample grid, the last, and some between."""
    grids = [path for path in run.grids() if grid_kimg(path) <= trained_kimg * 1.01]
    if len(grids) <= _SHOWN:
        return grids
    return [grids[round(i * (len(grids) - 1) / (_SHOWN - 1))] for i in range(_SHOWN)]
