"""``make faults``: the long version of the suite, and its table in docs/reliability.md."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pytest

from harness.machine.processes import usable_cores
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write_page(table: Path, command: str, took_s: float) -> None:
    """Put the rows that the tests left behind between the markers."""
    cores = usable_cores()
    lines = [
        BEGIN, "", f"`{command}`, {time.strftime('%Y-%m-%d')}, {cores} core{'s' * (cores != 1)}, "
        f"{took_s / 60:.0f} minutes.",
        "Time to recover: median (longest), from the fault to the next step of a training.", "",
        "| fault | times | trials lost | trials or runs doubled or wrong | points lost or doubled | to recover (s) |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in map(json.loads, table.read_text().splitlines()):
        seconds = row["recovery_s"]
        recovery = f"{statistics.median(seconds):.1f} ({max(seconds):.1f})" if seconds else ""
        lines.append(
            f"| {row['name']} | {row['times']} | {row['lost']} | {row['doubled']} | {row['points']} | {recovery} |"
        )
    made = "\n".join([*lines, "", END])
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: made, PAGE.read_text(), flags=re.S))


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults.table", description="Inject every fault, for long.")
    seed, kills = os.environ.get("SEED", "0"), os.environ.get("KILLS", "20")
    parser.add_argument("--seed", type=int, default=seed, help="of the random kills' times (SEED, default 0)")
    parser.add_argument("--kills", type=int, default=kills, help="random kills over one sweep (KILLS, default 20)")
    parser.add_argument("--trials", type=int, default=12, help="of the sweep with random kills")
    parser.add_argument("--many", type=int, default=200, help="short trials of eight workers on PostgreSQL")
    parser.add_argument("--only", default="", help="an expression for pytest's -k")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        table = Path(folder) / "table.jsonl"
        os.environ |= {
            "HARNESS_FAULTS": "long",
            "HARNESS_FAULTS_TABLE": str(table),
            "HARNESS_FAULTS_SEED": str(arguments.seed),
            "HARNESS_FAULTS_KILLS": str(arguments.kills),
            "HARNESS_FAULTS_TRIALS": str(arguments.trials),
            "HARNESS_FAULTS_MANY": str(arguments.many),
        }
        began = time.monotonic()
        chosen = ["-k", arguments.only] if arguments.only else []
        code = int(pytest.main(["tests/faults", "-v", "--durations=0", "--durations-min=1", *chosen]))
        if table.is_file():
            sys.stdout.write(table.read_text())
            if arguments.write and code == 0:
                write_page(table, " ".join(["python -m tests.faults.table", *sys.argv[1:]]), time.monotonic() - began)
    return code


if __name__ == "__main__":
    sys.exit(main())
