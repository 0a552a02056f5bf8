"""Ours against what people run today, side by side, interleaved; prints a Markdown table.

    make bench                                       (or: python -m benchmarks.bench --rounds 5)
    python -m benchmarks.bench --only step --photos PATH --full

Times are of this machine; only the ratios of one run mean something. Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measured import Measured, timed
from benchmarks.rows import GROUPS, HAS_BF16, PRECISIONS, Row, rows
from harness.home import Home
from harness.machine.processes import usable_cores
from harness.machine.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]


def measure(row: Row, rounds: int) -> dict[str, dict[str, Any]]:
    """By name, medians of ours and of the baseline and the ratio with its range; interleaved."""
    names = row.names()
    with row.make() as (made, baseline):
        calls = [*made] if row.variants else [made]
        calls += [baseline] if baseline is not None else []
        if row.warm_up:
            for call in calls:
                call()
        found = [[timed(call) for call in calls] for _ in range(row.rounds or rounds)]
    columns = list(zip(*found, strict=True))
    theirs = [m.value for m in columns[-1]] if baseline is not None else []
    return {name: result(row, column, theirs) for name, column in zip(names, columns, strict=False)}


def result(row: Row, ours: Sequence[Measured], theirs: list[float]) -> dict[str, Any]:
    """Medians, and the ratio of theirs to ours: of seconds, also where images per second are shown."""
    values = [m.value for m in ours]

    def median(of: list[float]) -> float:
        return row.images / statistics.median(of) if row.images else statistics.median(of)

    unit = "images/s" if row.images else row.unit
    found: dict[str, Any] = {"unit": unit, "ours": median(values), "rounds": len(values)}
    if ours[0].beside:
        found["beside"] = {key: statistics.median(m.beside[key] for m in ours) for key in ours[0].beside}
    if theirs:
        ratios = [b / a for a, b in zip(values, theirs, strict=True)]
        found |= {"baseline": median(theirs), "ratio": statistics.median(ratios)}
        found |= {"ratio_low": min(ratios), "ratio_high": max(ratios)}
    return found


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the Markdown table."""

    def shown(value: float) -> str:
        return f"{value:,.1f} images/s" if row["unit"] == "images/s" else f"{value:.3f} {row['unit']}"

    if "ratio" not in row:
        beside = ", ".join(f"{key} {value:.1f}" for key, value in row.get("beside", {}).items())
        return f"| {name} | {shown(row['ours'])} | | | {beside} |"
    spread = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}" if row["rounds"] > 1 else ""
    return f"| {name} | {shown(row['ours'])} | {shown(row['baseline'])} | {row['ratio']:.2f} | {spread} |"


def geometric_mean(results: dict[str, dict[str, Any]], precision: str) -> float | None:
    """Of the training steps' ratios to the write-ups' loop, as far as they were measured."""
    ratios = [
        row["ratio"] for name, row in results.items()
        if name.startswith("training step, ") and name.endswith(f"{precision}, against the write-ups' loop")
    ]  # fmt: skip
    return statistics.geometric_mean(ratios) if ratios else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="groups, with commas: " + ", ".join(GROUPS))
    parser.add_argument("--rows", default="", help="only rows whose name has this in it")
    parser.add_argument("--full", action="store_true", help="also rows that take many minutes")
    parser.add_argument("--photos", type=Path, help="a folder of JPEG files; made ones where it is left out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the newest results of this commit, processor and library versions, whatever their date",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(usable_cores())
    home = Home.from_environment()
    wanted = set(filter(None, arguments.only.split(",")))
    if wrong := wanted - set(GROUPS):
        parser.error(f"--only: there is no group {', '.join(sorted(wrong))}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {
        "date": datetime.date.today().isoformat(), "machine": platform.machine(),
        "load_before": round(os.getloadavg()[2], 2), **provenance("cpu"), "rows": {},
    }  # fmt: skip
    path = arguments.out / f"{made['date']}-cpu.json"
    before = {file: json.loads(file.read_text()) for file in sorted(arguments.out.glob("*-cpu.json"))}
    about = ("git_commit", "cpu", "cores", "versions")
    same = [file for file, found in before.items() if all(found.get(key) == made.get(key) for key in about)]
    if arguments.resume and same:
        path = same[-1]
        made = before[path]
    elif path.exists():
        parser.error(f"{path} has results of today: --resume goes on with them, --out FOLDER writes elsewhere")
    results: dict[str, dict[str, Any]] = made["rows"]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        chosen = [
            row for row in rows(home, arguments.photos, Path(folder))
            if (not wanted or row.group in wanted) and (arguments.full or not row.full_only)
            and any(arguments.rows in name for name in row.names())
        ]  # fmt: skip
        if not HAS_BF16:
            print("This processor has no instructions for bfloat16: its rows are left out.\n")
        print("| what | ours | baseline | ratio | range |\n|---|---:|---:|---:|---|")
        for row in chosen:
            if not results.keys() >= set(row.names()):
                results |= measure(row, arguments.rounds)
            for name in row.names():
                print(line(name, results[name]), flush=True)
            means = {precision: geometric_mean(results, precision) for precision in PRECISIONS}
            made["geometric_mean_step"] = means
            path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")  # an interrupted run keeps its rows
    for precision, mean in means.items():
        if mean:
            print(f"\ntraining step, {precision}, geometric mean of the ratios: {mean:.2f}")
    print(f"\nwritten: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


if __name__ == "__main__":
    main()
