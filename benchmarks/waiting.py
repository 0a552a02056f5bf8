"""How should threads wait for each other? Training steps and scoring beside busy neighbours, by setting of OpenMP.

    python -m benchmarks.waiting run [--threads 2] [--rounds 3]      # ten minutes on two cores, nothing else running
    python -m benchmarks.waiting report

Each setting has a process of its own, set up as a worker. In a round every setting takes its turn at every task: alone,
beside one process that computes all the time, and beside two. A line of the results is one turn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.measured import neighbours
from benchmarks.rows import noise_images, system
from harness.gan.run import Run
from harness.home import Home
from harness.machine.processes import exact_arithmetic, keep_memory, usable_cores, use_threads
from harness.machine.provenance import provenance
from harness.scoring.extractors import Extractor
from harness.scoring.protocol import INCEPTION, MOBILENET

RESULTS = Path(__file__).resolve().parent / "results" / "waiting.jsonl"
# What is set before OpenMP's library is loaded; libgomp's names, the one that torch's wheels for Linux bring.
SETTINGS: dict[str, dict[str, str]] = {
    "spin (libgomp's own)": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 2,000": {"GOMP_SPINCOUNT": "2000"},
    "one thread": {},
}
_OF_OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
TURN_S = 2.0
STEPS = (("udacity32", 16), ("udacity32", 128), ("celeba64", 16), ("celeba64", 128))
EXTRACTORS = (MOBILENET, INCEPTION)


def tasks(home: Home) -> dict[str, tuple[Callable[[], object], int]]:
    """What takes turns: a call, and how many images it trains on or scores."""
    found: dict[str, tuple[Callable[[], object], int]] = {}
    for recipe, batch in STEPS:
        hp = system(recipe, batch)
        run = Run(hp, noise_images(hp, 512), 0, torch.device("cpu"))
        found[f"step, {recipe}, batch {batch}"] = partial(_advance, run), batch
    pictures = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8)
    for name in EXTRACTORS:
        found[f"scoring, {name}"] = partial(Extractor(name, home, torch.device("cpu"), print), pictures), len(pictures)
    return found


def _advance(run: Run) -> None:
    run.advance()
    run.read_window()


def turn(call: Callable[[], object], images: int) -> float:
    """Images a second, over at least ``TURN_S``."""
    started, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < TURN_S:
        call()
        done += images
    return done / seconds


def _serve(pipe: Connection, threads: int, root: Path) -> None:
    keep_memory()
    exact_arithmetic()
    use_threads(threads)
    found = tasks(Home(root))
    for call, _ in found.values():
        call()
    pipe.send(list(found))
    for name in iter(pipe.recv, None):
        pipe.send(turn(*found[name]))


@contextmanager
def served(setting: str, threads: int, home: Home) -> Iterator[Connection]:
    """A process that was started with this setting; it gets names of tasks, and answers with images a second."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    before = {name: os.environ.pop(name) for name in _OF_OPENMP if name in os.environ}
    os.environ.update(SETTINGS[setting])
    process = context.Process(target=_serve, args=(theirs, 1 if setting == "one thread" else threads, home.root))
    process.start()
    for name in SETTINGS[setting]:
        del os.environ[name]
    os.environ.update(before)
    try:
        yield ours
    finally:
        process.kill()


def run(threads: int, rounds: int) -> None:
    """Add a line for each turn to the results."""
    home, about = Home.from_environment(), {key: provenance("cpu")[key] for key in ("git_commit", "cpu", "cores")}
    with ExitStack() as stack, RESULTS.open("a") as file:
        servers = {setting: stack.enter_context(served(setting, threads, home)) for setting in SETTINGS}
        names, *_ = [server.recv() for server in servers.values()]
        for number in range(rounds):
            for beside in range(3):
                with neighbours(beside):
                    for name in names:
                        for setting, server in servers.items():
                            server.send(name)
                            row = {"task": name, "setting": setting, "neighbours": beside, "round": number}
                            row |= {"images_per_s": round(server.recv(), 1), "threads": threads, **about}
                            file.write(json.dumps({**row, "date": time.strftime("%Y-%m-%d")}) + "\n")
                file.flush()


def report() -> str:
    """Markdown: medians of images a second by task, neighbours and setting, and as a share of the first setting's."""
    found = defaultdict(list)
    for line in RESULTS.read_text().splitlines():
        row = json.loads(line)
        found[row["cpu"], row["threads"], row["task"], row["neighbours"], row["setting"]].append(row["images_per_s"])
    lines = [f"| task | neighbours | {' | '.join(SETTINGS)} |", f"|---|---:|{'---:|' * len(SETTINGS)}"]
    for where in dict.fromkeys(key[:4] for key in found):
        medians = [statistics.median(found[(*where, setting)]) for setting in SETTINGS]
        shown = " | ".join(f"{value:,.0f} ({value / medians[0]:.2f})" for value in medians)
        lines.append(f"| {where[2]}, {where[1]} threads, {where[0]} | {where[3]} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="do", required=True)
    running = commands.add_parser("run")
    running.add_argument("--threads", type=int, default=usable_cores())
    running.add_argument("--rounds", type=int, default=3)
    commands.add_parser("report")
    arguments = parser.parse_args()
    if arguments.do == "run":
        run(arguments.threads, arguments.rounds)
    else:
        print(report())


if __name__ == "__main__":
    main()
