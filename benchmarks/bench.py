"""Ours against what people run today, side by side in one process, interleaved; prints a Markdown table.

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
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import PRECISIONS, Measured, Row, rows
from harness.home import Home
from harness.sweep.processes import usable_cores
from harness.sweep.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]


def measure(row: Row, rounds: int) -> dict[str, Any]:
    """Medians of both and the ratio with its range, rounds interleaved after one warm-up each."""
    ours: list[float] = []
    theirs: list[float] = []
    peak = 0.0
    with row.make() as (run, baseline):
        if row.rounds != 1:
            for warm in filter(None, (run, baseline)):
                warm()
        for _ in range(row.rounds or rounds):
            started = time.perf_counter()
            found = run()
            seconds = time.perf_counter() - started
            if isinstance(found, Measured):
                seconds, peak = found.value, max(peak, found.peak_mib)
            ours.append(seconds)
            if baseline is not None:
                started = time.perf_counter()
                found = baseline()
                theirs.append(found.value if isinstance(found, Measured) else time.perf_counter() - started)
    result: dict[str, Any] = {"unit": row.unit, "ours": statistics.median(ours), "rounds": len(ours)}
    if peak:
        result["peak_mib"] = round(peak, 1)
    if theirs:
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        result |= {"baseline": statistics.median(theirs), "ratio": statistics.median(ratios)}
        result |= {"ratio_low": min(ratios), "ratio_high": max(ratios)}
    return result


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    unit = row["unit"]
    if "ratio" not in row:
        peak = f"peak {row['peak_mib']:.0f} MiB" if "peak_mib" in row else ""
        return f"| {name} | {row['ours']:.3f} {unit} | | | {peak} |"
    spread = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}" if row["rounds"] > 1 else ""
    return f"| {name} | {row['ours']:.3f} {unit} | {row['baseline']:.3f} {unit} | {row['ratio']:.2f} | {spread} |"


def geometric_mean(results: dict[str, dict[str, Any]], group: list[str]) -> float | None:
    """Of the ratios of the group's rows that were measured."""
    ratios = [results[name]["ratio"] for name in group if name in results]
    return statistics.geometric_mean(ratios) if ratios else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", default="", help="groups, separated by commas: step, files, score, fused, memory, harness, start"
    )
    parser.add_argument("--full", action="store_true", help="also rows that take many minutes")
    parser.add_argument("--photos", type=Path, help="a folder of JPEG files; made ones where it is left out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(usable_cores())
    home = Home.from_environment()
    wanted = set(filter(None, arguments.only.split(",")))
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        chosen = [
            row for row in rows(home, arguments.photos, Path(folder))
            if (not wanted or row.group in wanted) and (arguments.full or not row.full_only)
        ]  # fmt: skip
        print("| what | ours | baseline | ratio | range |\n|---|---:|---:|---:|---|")
        for row in chosen:
            results[row.name] = measure(row, arguments.rounds)
            print(line(row.name, results[row.name]), flush=True)
    means = {
        precision: geometric_mean(
            results, [r.name for r in chosen if r.group == "step" and f"{precision}, against the write-ups" in r.name]
        )
        for precision in PRECISIONS
    }
    for precision, mean in means.items():
        if mean:
            print(f"\ntraining step, {precision}, geometric mean of the ratios: {mean:.2f}")
    made: dict[str, Any] = {
        "date": datetime.date.today().isoformat(), "machine": platform.machine(),
        "load_before": round(os.getloadavg()[2], 2), **provenance("cpu"),
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{made['date']}-cpu.json"
    made |= {"geometric_mean_step": means, "rows": results}
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    print(f"\nwritten: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


if __name__ == "__main__":
    main()
