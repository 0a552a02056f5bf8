"""The long fault runs: ``harness faults --seed N --kills N`` writes what they found into docs/reliability.md."""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from threading import Event, Thread

import numpy as np
from PIL import Image

from harness.home import Home
from harness.study.records import StudyRecord
from tests.conftest import ROOT, blobs, sharing_weights
from tests.e2e.test_sweep import Project
from tests.faults.checks import QUICK, check_all, finished, outcome
from tests.servers import Postgres

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


class Bench:
    """A folder with images, and projects in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir()
        for index, pixels in enumerate(blobs(32)):
            Image.fromarray(pixels[..., 0]).save(self.images / f"{index:03d}.png")

    def project(self, name: str, study: str, **environment: str) -> Project:
        folder = self.folder / name
        folder.mkdir()
        weights = Home(Path(os.environ.get("HARNESS_TEST_HOME") or ROOT / "runs"))
        project = Project(folder, sharing_weights(folder, weights), self.images)
        (folder / "search_spaces" / "tiny.toml").write_text(study)
        project.env |= {"HARNESS_CHECKPOINT_S": "0.2", **environment}
        return project


def children_of(pid: int) -> list[int]:
    """Worker processes of a supervisor, by the kernel's word."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and b"spawn_main" in command:
            found.append(int(stat.parent.name))
    return found


def random_kills(bench: Bench, rng: random.Random, kills: int, trials: int) -> dict[str, object]:
    """Kill the worker at random times over one sweep; compare with a sweep that nobody disturbed."""
    study = QUICK.replace("kimg = 0.4", "kimg = 3.2").replace("rungs = [0.1]", "rungs = [0.8, 1.6]")
    study = study.replace("trials = 4", f"trials = {trials}")
    whole = bench.project("whole", study)
    began = time.monotonic()
    whole.run("sweep")
    undisturbed_s = time.monotonic() - began
    expected = outcome(whole.home, check_all(whole.home, "tiny", trials))
    project = bench.project("killed", study)
    began, done, recoveries = time.monotonic(), 0, []
    process = project.start("sweep")
    output: list[str] = []
    reader = Thread(target=lambda: output.extend(process.stdout), daemon=True)
    reader.start()
    while done < kills and process.poll() is None:
        Event().wait(rng.uniform(1.0, 12.0))
        for pid in children_of(process.pid)[:1]:
            os.kill(pid, signal.SIGKILL)
            killed_at, before = time.monotonic(), len(output)
            done += 1
            while process.poll() is None and not any(" starts" in line for line in output[before:]):
                Event().wait(0.1)
            recoveries.append(time.monotonic() - killed_at)
    process.wait(timeout=1200)
    reader.join(10)
    if process.returncode:
        raise AssertionError("".join(output))
    record = check_all(project.home, "tiny", trials)
    if outcome(project.home, record) != expected:
        raise AssertionError("results differ from those of the undisturbed sweep")
    return row(
        f"kill -9 of the worker at random times, one sweep of {trials} trials "
        f"({time.monotonic() - began:.0f} s; undisturbed {undisturbed_s:.0f} s)",
        done, record, trials, float(np.median(recoveries)),
    )  # fmt: skip


def outage(bench: Bench, server: Postgres, seconds: float, grace: float) -> dict[str, object]:
    """Stop PostgreSQL during a sweep for so long."""
    project = bench.project(
        f"outage{seconds:g}", QUICK.replace("kimg = 0.4", "kimg = 3.2"),
        HARNESS_STORAGE=server.database(), HARNESS_GRACE_S=str(grace),
    )  # fmt: skip
    process = project.start("sweep")
    output = ""
    for line in process.stdout:
        output += line
        if "trial 1 starts" in line:
            break
    server.stop()
    stopped = time.monotonic()
    Event().wait(seconds)
    server.start()
    back = time.monotonic()
    rest, _ = process.communicate(timeout=600)
    recovery = time.monotonic() - back
    if seconds > grace:
        if process.returncode != 75:
            raise AssertionError(f"exit code {process.returncode} after {back - stopped:.0f} s:\n{output}{rest}")
        project.run("sweep")
    elif process.returncode:
        raise AssertionError(output + rest)
    os.environ["HARNESS_STORAGE"] = project.env["HARNESS_STORAGE"]
    try:
        record = check_all(project.home, "tiny", 4)
    finally:
        del os.environ["HARNESS_STORAGE"]
    what = "exit code 75, then started again" if seconds > grace else "waited out"
    return row(f"PostgreSQL stopped for {seconds:g} s, grace period {grace:g} s ({what})", 1, record, 4, recovery)


def many_workers(bench: Bench, server: Postgres, workers: int, trials: int) -> dict[str, object]:
    """Many workers on PostgreSQL, many short trials."""
    study = QUICK.replace("trials = 4", f"trials = {trials}").replace("kimg = 0.4", "kimg = 0.2")
    project = bench.project("many", study, HARNESS_STORAGE=server.database(), HARNESS_CHECKPOINT_S="60")
    began = time.monotonic()
    project.run("sweep", WORKERS=str(workers))
    took = time.monotonic() - began
    os.environ["HARNESS_STORAGE"] = project.env["HARNESS_STORAGE"]
    try:
        record = check_all(project.home, "tiny", trials)
    finally:
        del os.environ["HARNESS_STORAGE"]
    return row(
        f"no fault: {workers} workers on PostgreSQL, {trials} short trials ({took:.0f} s)", 0, record, trials, 0.0
    )


def row(fault: str, injected: int, record: StudyRecord, trials: int, recovery_s: float) -> dict[str, object]:
    """A line of the table; ``check_all`` has passed, so that what is lost or doubled is counted, not assumed."""
    places = Counter(trial.attrs["place"] for trial in finished(record))
    return {
        "fault": fault, "injected": injected, "lost": trials - len(places),
        "doubled": sum(places.values()) - len(places), "recovery": f"{recovery_s:.1f} s" if injected else "",
    }  # fmt: skip


def write_page(rows: list[dict[str, object]], command: str) -> None:
    lines = [
        BEGIN, "", f"`{command}`, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores:", "",
        "| fault | times | trials lost | doubled | points lost or doubled | time to recover |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [f"| {r['fault']} | {r['injected']} | {r['lost']} | {r['doubled']} | 0 | {r['recovery']} |" for r in rows]
    text = PAGE.read_text()
    made = "\n".join([*lines, "", END])
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: made, text, flags=re.S))


def main() -> int:
    parser = argparse.ArgumentParser(prog="harness faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--many", type=int, default=200, help="short trials of eight workers on PostgreSQL")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    rows: list[dict[str, object]] = []

    def report(found: dict[str, object]) -> None:
        rows.append(found)
        sys.stdout.write(f"{found}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="faults-") as name, tempfile.TemporaryDirectory(prefix="pg-") as pg:
        bench = Bench(Path(name))
        report(random_kills(bench, rng, arguments.kills, arguments.trials))
        server = Postgres(Path(pg))
        try:
            for seconds in (5.0, 30.0, 50.0):
                report(outage(bench, server, seconds, grace=40.0))
            report(many_workers(bench, server, 8, arguments.many))
        finally:
            if not server.own:
                server.stop()
    if arguments.write:
        write_page(rows, " ".join(["harness faults", *sys.argv[1:]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
