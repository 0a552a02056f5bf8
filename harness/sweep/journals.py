"""Journals of earlier versions: what was still to be sent to MLflow."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from typing import Any

from filelock import FileLock, Timeout

from harness.home import Home
from harness.training.run_folder import RunEnd, RunFolder, RunInfo, RunRecord


def adopt_journals(home: Home) -> list[str]:
    """Remove the journals in ``runs/spool``, and return a line that says so.

    Their runs are sent from folders and database instead. A single training is not in the database, so its record is
    made from its journal. The journal of a living process stays.
    """
    spool = home.root / "spool"
    if not spool.is_dir():
        return []
    journals = 0
    with FileLock(home.root / ".spool.lock"):
        for journal in sorted(spool.glob("*.jsonl")):
            with suppress(Timeout), FileLock(journal.with_suffix(".owner"), timeout=0):
                lines = []
                for line in journal.read_bytes().splitlines():
                    with suppress(ValueError):  # half a line at the end, or a bad block of the disk
                        lines.append(json.loads(line))
                _adopt(lines, home)
                journal.unlink()
                journals += 1
        if not any(spool.glob("*.jsonl")):
            shutil.rmtree(spool, ignore_errors=True)
    said = f"{journals} journals of an earlier version removed: MLflow gets it from the runs' folders"
    return [said] if journals else []


def _adopt(lines: list[dict[str, Any]], home: Home) -> None:
    """Write the record of a training, if this is its journal, its folder exists, and nothing has continued it since."""
    info = lines[0]["info"] if lines and lines[0].get("op") == "start" else {"key": ""}
    experiment, is_training, rest = str(info["key"]).partition("/training/")
    name, _, kimg = rest.rpartition("/")
    if not is_training or not (folder := RunFolder(home.training_dir(name))).path.is_dir():
        return
    curve, marks, end = folder.read_curve(), dict[int, dict[str, float]](), None
    of_curve = {name for row in curve for name in row}
    for line in lines[1:]:
        for name, value, step in line.get("points", []):
            if name not in of_curve:
                marks.setdefault(step, {})[name] = value
        if line["op"] == "end":
            end = RunEnd(state=line["state"], scores=line["scores"], tags=line["tags"])
    if not (path := folder.record(float(kimg))).exists():
        info = RunInfo(**info, experiment=experiment)
        RunRecord(info=info, kimg=float(kimg), opened_ms=int(lines[0]["at"]), marks=marks, end=end).write(path)
