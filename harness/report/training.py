"""One page on one training: what was trained, how its losses went, its samples and its scores."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from harness import atomic
from harness.findings.frames import curve_frame
from harness.gan.hparams import HParams
from harness.report import plots
from harness.report.html import write_html
from harness.report.markdown import environment, squeeze
from harness.text import number
from harness.training.run_folder import RunFolder, grid_kimg

# Sample grids shown: the first, some between, the last.
_SHOWN = 4


def build_training_report(folder: Path, out: Path) -> Path:
    """Write ``report.md`` with figures into ``out`` from a finished training's folder: same files, same bytes.

    Returns:
        The path of ``report.md``.
    """
    run = RunFolder(folder)
    summary = run.read_summary()
    out.mkdir(parents=True, exist_ok=True)
    curve = curve_frame(run.curve)
    if len(curve):
        atomic.write_bytes(out / "losses.png", plots.to_png(plots.losses(curve)))
    for old in RunFolder(out).grids():
        old.unlink()
    grids = _copy_grids(run, out, summary["trained_kimg"])
    defaults = HParams().to_dict()
    context = {
        **summary,
        "curve": len(curve) > 0,
        "rate": float(curve["images_per_s"].median()) if len(curve) else 0.0,
        "grids": grids,
        "changed": {k: v for k, v in summary["hparams"].items() if k in _ALWAYS or v != defaults[k]},
        "folder": folder.name,
        "environment": sorted(summary["environment"].items()),
    }
    template = files("harness.report").joinpath("templates/training.md.j2").read_text(encoding="utf-8")
    atomic.write_text(out / "report.md", squeeze(environment().from_string(template).render(context)))
    write_html(out / "report.md")
    return out / "report.md"


# Shown whether or not they differ from the defaults.
_ALWAYS = ("image_size", "batch_size", "lr_g", "lr_d", "beta1", "beta2", "bn", "activation_g", "activation_d", "latent")


def _copy_grids(run: RunFolder, out: Path, trained_kimg: float) -> list[dict[str, str]]:
    found = [path for path in run.grids() if grid_kimg(path) <= trained_kimg * 1.01]
    if len(found) > _SHOWN:
        found = [found[round(i * (len(found) - 1) / (_SHOWN - 1))] for i in range(_SHOWN)]
    grids = []
    for place, path in enumerate(found, start=1):
        atomic.write_bytes(out / f"grid-{place}.png", path.read_bytes())
        grids.append({"file": f"grid-{place}.png", "title": f"{number(grid_kimg(path))} kimg"})
    return grids
