"""What does the default study get done in five minutes: by default, and with one worker that has every core?

    python -m benchmarks.whole_machine run [--neighbours 1]      # ten minutes a round, nothing else running
    python -m benchmarks.whole_machine report

The one worker's threads wait as OpenMP's library has it, as in the harness before it set that. Neighbours are processes
that compute all the time.

Each turn is a sweep of its own, in a fresh home with the scoring weights, timed from its call on. It has more trials
than fit into the time, so that no turn ends early. A line of the results is one turn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measured import neighbours
from harness.home import Home
from harness.machine.processes import Machines, usable_cores
from harness.machine.provenance import provenance
from harness.spec.files import load_study_file
from harness.spec.resolved import ResolvedStudy
from harness.spec.tables import sampling_seeds
from harness.sweep import messages
from harness.sweep.run import run_sweep

RESULTS = Path(__file__).resolve().parent / "results" / "whole-machine.jsonl"
STUDY = "mnist32"
TRIALS = 100
# By name: WORKERS, None is auto; and environment. The harness leaves the waiting alone where any of it is set, and
# KMP_BLOCKTIME means nothing to libgomp.
ARMS: dict[str, tuple[int | None, dict[str, str]]] = {
    "one worker": (1, {"KMP_BLOCKTIME": "200"}),
    "auto": (None, {}),
}
COUNTED = ("kimg", "scored", "finished", "seconds")


@dataclass
class Work:
    """What workers report to have done: kimg trained, images scored, trials that ended."""

    spec: ResolvedStudy
    kimg: float = 0.0
    scored: int = 0
    finished: int = 0
    reached: dict[int, float] = field(default_factory=dict)  # kimg, by trial

    def add(self, event: messages.Event) -> None:
        final, rung = self.spec.scoring.final, self.spec.scoring.rung
        match event:
            case messages.Started(number=number, kimg=kimg):
                self.reached[number] = kimg
            case messages.Progressed(number=number, kimg=kimg):
                self.kimg += kimg - self.reached[number]
                self.reached[number] = kimg
            case messages.Scored():
                self.scored += rung.samples
            case messages.Ended(state=state):
                self.finished += state in ("COMPLETE", "PRUNED")
                self.scored += final.samples * len(sampling_seeds(self.spec.scoring)) * (state == "COMPLETE")


def turn(arm: str, seconds: float, root: Path, pipe: Any) -> None:
    """A sweep that is stopped at once when its time is over; its counts go through the pipe."""
    workers, environment = ARMS[arm]
    os.environ |= environment
    work, began = Work(load_study_file(STUDY)), time.monotonic()
    watcher = messages.Watcher(on_event=work.add, stop_level=lambda: 2 if time.monotonic() - began > seconds else 0)
    machines = Machines(workers=workers, device="cpu")
    run_sweep(work.spec, Home(root), watcher, source=None, trials=TRIALS, machines=machines, resume_anyway=False)
    took = min(seconds, time.monotonic() - began)
    pipe.send({"kimg": round(work.kimg, 1), "scored": work.scored, "finished": work.finished, "seconds": round(took)})


def run(seconds: float, rounds: int, busy: int) -> None:
    """Add a line for each turn to the results; the arms take turns, in the other order in every second round."""
    about = {key: provenance("cpu")[key] for key in ("git_commit", "cpu")} | {"cores": usable_cores()}
    context, weights = mp.get_context("spawn"), Home.from_environment().root / "weights"
    for number in range(rounds):
        for arm in sorted(ARMS, reverse=bool(number % 2)):
            load = round(os.getloadavg()[0], 2)
            with tempfile.TemporaryDirectory() as folder, RESULTS.open("a") as file, neighbours(busy):
                (Path(folder) / "weights").symlink_to(weights.resolve())
                ours, theirs = context.Pipe()
                process = context.Process(target=turn, args=(arm, seconds, Path(folder), theirs))
                process.start()
                theirs.close()
                row = {"arm": arm, "round": number, "neighbours": busy, **ours.recv(), "load_before": load, **about}
                process.join()
                file.write(json.dumps({**row, "date": time.strftime("%Y-%m-%d")}) + "\n")
            print(row, flush=True)


def report() -> str:
    """Markdown: medians of each arm, and the ratio of auto to one worker."""
    counts = defaultdict(list)
    for line in RESULTS.read_text().splitlines():
        row = json.loads(line)
        for name in COUNTED:
            counts[row["cpu"], row["cores"], row["neighbours"], row["arm"], name].append(row[name])
    lines = [
        "| machine | busy processes | arm | kimg trained | images scored | trials finished | seconds |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for cpu, cores, busy in dict.fromkeys(key[:3] for key in counts):
        medians = {arm: [statistics.median(counts[cpu, cores, busy, arm, name]) for name in COUNTED] for arm in ARMS}
        for arm, values in medians.items():
            counted = " | ".join(f"{value:,.0f}" for value in values)
            lines.append(f"| {cpu}, {cores} cores | {busy} | {arm} | {counted} |")
        ratios = [auto / one if one else float("nan") for one, auto in zip(*medians.values(), strict=True)]
        lines.append(f"| | | ratio | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="do", required=True)
    running = commands.add_parser("run")
    running.add_argument("--seconds", type=float, default=300.0)
    running.add_argument("--rounds", type=int, default=1)
    running.add_argument("--neighbours", type=int, default=0)
    commands.add_parser("report")
    arguments = parser.parse_args()
    if arguments.do == "run":
        run(arguments.seconds, arguments.rounds, arguments.neighbours)
    else:
        print(report())


if __name__ == "__main__":
    main()
