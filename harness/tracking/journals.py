"""What MLflow had yet to get, as earlier versions kept it in ``runs/spool``: turned into records, once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.home import Home
from harness.training.record import RunEnd, RunInfo, RunRecord
from harness.training.run_folder import RunFolder, grid_kimg


def adopt_journals(home: Home) -> list[str]:
    """Turn each journal into the record of its run's folder, which has all else; a line that says how many.

    A journal whose process lives is left to it, and taken at the next start.
    """
    spool = home.root / "spool"
    if not spool.is_dir():
        return []
    adopted = 0
    with FileLock(home.root / ".spool.lock"):
        for journal in sorted(spool.glob("*.jsonl")):
            try:
                with FileLock(journal.with_suffix(".owner"), timeout=0):
                    adopted += _adopt(list(_lines(journal)))
            except Timeout:
                continue
            journal.unlink()
        if not any(spool.glob("*.jsonl")):
            shutil.rmtree(spool, ignore_errors=True)
    return [f"{adopted} journals of an earlier version were adopted: MLflow gets what they had"] if adopted else []


def _adopt(lines: list[dict[str, Any]]) -> bool:
    """Write the record beside the curve; whether there was one to write."""
    if not lines or lines[0].get("op") != "start":
        return False
    folders = [Path(line["file"]).parent for line in lines if line["op"] in ("artifact", "image")]
    if not folders or not folders[0].is_dir():
        return False
    folder, info = RunFolder(folders[0]), lines[0]["info"]
    curve = folder.read_curve()
    of_curve = {name for row in curve for name in row}
    marks: dict[int, dict[str, float]] = {}
    for name, value, step in (point for line in lines if line["op"] == "log" for point in line["points"]):
        if name not in of_curve:
            marks.setdefault(step, {})[name] = value
    ended = [line for line in lines if line["op"] == "end"]
    trained = curve[-1]["kimg"] if curve else 0.0
    experiment, _, last = str(info["key"]).partition("/training/")
    # A trial's key is STUDY/NUMBER, a training's EXPERIMENT/training/NAME/KIMG.
    kimg = float(last.rsplit("/", 1)[-1]) if last else _final_kimg(folder, lines, trained)
    record = RunRecord(
        info=RunInfo(**info, experiment=experiment if last else experiment.rpartition("/")[0]),
        kimg=kimg,
        opened_ms=int(lines[0]["at"]),
        marks=marks,
        end=_end(ended[-1], trained) if ended else None,
    )
    if folder.record(kimg).exists():  # this version has continued it since
        return False
    record.write(folder.record(kimg))
    return True


def _end(line: Mapping[str, Any], kimg: float) -> RunEnd:
    return RunEnd(state=line["state"], scores=line["scores"], tags=line["tags"], kimg=kimg)


def _final_kimg(folder: RunFolder, lines: list[dict[str, Any]], trained: float) -> float:
    """The budget: where the final picture was drawn, else how far it came."""
    final = [line["file"] for line in lines if line["op"] == "image" and line["name"] == "final_samples"]
    return grid_kimg(Path(final[0])) if final else max([trained, *map(grid_kimg, folder.grids())])


def _lines(journal: Path) -> Iterator[dict[str, Any]]:
    for line in journal.read_bytes().splitlines():
        with suppress(ValueError):  # half a line at the end, or a bad block of the disk
            yield json.loads(line)
