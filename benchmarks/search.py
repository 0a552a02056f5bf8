"""Is the search as good as random search at a third of its compute? A test that was fixed before it was run.

    taskset -c 0 python -m benchmarks.search run mnist32 --part 0/2     # hours; and --part 1/2 on core 1
    python -m benchmarks.search run fashion32 --part 0/2                # needs Debian's dataset-fashion-mnist
    python -m benchmarks.search run celeba32 --data FOLDER --part 0/2
    python -m benchmarks.search report                                  # prints the table
    python -m benchmarks.search figure OUT.png

Four searches of the same space, without presets, none with a number that was chosen on these seeds: *pool*, random
search that trains each trial in full; *promotion*, the default; *promotion, random*, which tells the schedule from the
sampler; *verdicts*, the default before promotion. Faces are searched once more by *promotion, warm*, which begins with
the trials that promotion made on digits with the same seed (`[sampler] from`).

Compute is the seconds of all trainings and scores, failed ones included, in units of the mean full trial of the pool
on the same machine; a machine that did not run the pool first repeats a tenth of it, for the ratio of their speeds
(arm *again*, whose scores count nowhere). The goal is the expected best of N = 30 of the pool (over all its subsets).
A sweep succeeds if its best final score within N / 3 units is as good; it ends there, so the pool is to be whole first.

A line of the results file is one sweep, written when it ends; a sweep that was killed continues. The seeds are fresh:
sweeps of other seeds led to today's rungs and sampler (search-mnist32-before.jsonl, docs/lab/2026-11.md).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from harness.home import Home
from harness.machine.processes import Machines
from harness.machine.provenance import provenance
from harness.spec.files import load_study_file
from harness.spec.resolved import ResolvedStudy
from harness.store.studies import started_study, study_to_record
from harness.sweep.messages import Ended, Event, Watcher
from harness.sweep.run import run_sweep

RESULTS = Path(__file__).resolve().parent / "results"
N = 30
POOL, PROMOTION, PROMOTION_RANDOM, VERDICTS, WARM, AGAIN = ARMS = (
    "pool", "promotion", "promotion, random", "verdicts", "promotion, warm", "again",
)  # fmt: skip
_POOL_TRIALS = 3  # a sweep of the pool
_AGAIN = 3  # sweeps of the pool that another machine repeats
_TRIALS = {POOL: _POOL_TRIALS, PROMOTION: 64, PROMOTION_RANDOM: 64, VERDICTS: 200, WARM: 64, AGAIN: _POOL_TRIALS}
_FIRST_SEED, _FIRST_SWEEP = 1000, 4000  # of the pool, and of the other arms
_FASHION = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
_RESAMPLED = 2000


@dataclass(frozen=True, slots=True)
class Images:
    """A data set of the test: which study's space and scoring, trial length (kimg), sweeps of each arm."""

    study: str
    kimg: float
    sweeps: int
    controls: int


SETS = {
    "mnist32": Images("mnist32", 54, 30, 10),
    "fashion32": Images("mnist32", 54, 15, 5),
    "celeba32": Images("celeba32_small", 36, 15, 5),
}


def arm_spec(name: str, arm: str, seed: int) -> ResolvedStudy:
    """The study of one sweep, under a name of its own."""
    images = SETS[name]
    content = load_study_file(images.study).model_dump()
    content |= {"name": f"search-{name}-{ARMS.index(arm)}-{seed}", "presets": (), "quick": None}
    content["budget"] = {"trials": _TRIALS[arm], "kimg": images.kimg}
    content["pruner"], content["sampler"] = {}, {"name": "tpe", "seed": seed}
    if name == "fashion32":
        content["data"]["source"] = "folder"
    if arm in (POOL, PROMOTION_RANDOM, AGAIN):
        content["sampler"]["name"] = "random"
    if arm == WARM:
        content["sampler"]["from"] = [arm_spec("mnist32", PROMOTION, seed).name]
    if arm in (POOL, AGAIN):
        content["pruner"], content["budget"]["rungs"] = {"name": "none"}, ()
    if arm == VERDICTS:  # as it was: decided once, at two rungs
        content["sampler"]["n_startup_trials"] = 6
        content["pruner"] = {"name": "percentile", "percentile": 25.0, "n_startup_trials": 1}
        content["budget"]["rungs"] = [images.kimg * share for share in (12 / 54, 24 / 54)]
        content["scoring"]["rung"] = {"extractor": "mobilenet-v2", "samples": 250, "reference": 1000}
    return ResolvedStudy.model_validate(content)


def jobs(name: str) -> list[tuple[str, int]]:
    """(arm, seed) of all sweeps: the pool, then the others in an order in which what is there can be compared."""
    images, found = SETS[name], [(POOL, _FIRST_SEED + index) for index in range(3 * N // _POOL_TRIALS)]
    for seed in range(_FIRST_SWEEP, _FIRST_SWEEP + images.sweeps):
        arms = (PROMOTION_RANDOM, VERDICTS) if seed < _FIRST_SWEEP + images.controls else ()
        found += [(arm, seed) for arm in (PROMOTION, *([WARM] if name == "celeba32" else []), *arms)]
    return found


def results_path(name: str) -> Path:
    return RESULTS / f"search-{name}.jsonl"


def rows(name: str) -> list[dict[str, Any]]:
    """The sweeps that are there."""
    path = results_path(name)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def unit(found: Sequence[dict[str, Any]], cpu: str) -> float:
    """Seconds of a full trial of the pool on such a machine, without those that diverged; NaN where none is known."""

    def rows_of(machine: str, *arms: str) -> dict[int, dict[str, Any]]:
        return {row["seed"]: row for row in found if row["cpu"] == machine and row["arm"] in arms}

    def mean(machine: str) -> float:
        return float(np.mean([s for row in rows_of(machine, POOL).values() for s, _ in row["full"]]))

    own, here = rows_of(cpu, POOL), rows_of(cpu, POOL, AGAIN)
    if sum(len(row["full"]) for row in own.values()) >= N / 2:
        return mean(cpu)
    for other in sorted({row["cpu"] for row in found} - {cpu}):
        there = rows_of(other, POOL)
        both = there.keys() & here.keys()
        if len(both) >= _AGAIN:
            ours, theirs = (sum(float(rows[seed]["seconds"]) for seed in both) for rows in (here, there))
            return mean(other) * ours / theirs
    return math.nan


def goal(scores: Sequence[float] | np.ndarray, n: int = N) -> float:
    """The expected best of n scores that are drawn from these without replacement."""
    ordered = np.sort(scores)
    ranks = np.arange(len(ordered))
    chance = np.array([math.comb(len(ordered) - 1 - int(rank), n - 1) / math.comb(len(ordered), n) for rank in ranks])
    return float(ordered @ chance)


def best_at(course: Sequence[Sequence[float]], compute: float) -> float:
    """The best final score within so much compute; infinite where there is none."""
    return min((score for spent, score in course if spent <= compute), default=math.inf)


def ratio(courses: Sequence[Sequence[Sequence[float]]], aim: float, n: int = N) -> float:
    """The compute, as a share of n units, from which on the sweeps' mean best score is as good as the aim."""
    for at in sorted({spent for course in courses for spent, _ in course}):
        if np.mean([best_at(course, at) for course in courses]) <= aim:
            return float(at / n)
    return math.inf


def run_one(
    name: str, arm: str, seed: int, home: Home, source: Path | None, limit_s: float, aim: float
) -> dict[str, Any]:
    """One sweep, to its end, to ``limit_s`` seconds of compute or to a score as good as ``aim``."""
    spec = arm_spec(name, arm, seed)
    kept = home.within("search", f"{spec.name}.jsonl")
    kept.parent.mkdir(parents=True, exist_ok=True)
    spent, best = 0.0, math.inf

    def on_event(event: Event) -> None:
        nonlocal spent, best
        if not isinstance(event, Ended):
            return
        record = study_to_record(started_study(spec.name, home))
        spent = sum(trial.seconds for trial in record.trials)
        if event.state == "COMPLETE" and event.value is not None:
            best = min(best, event.value)
            with kept.open("a") as file:
                file.write(json.dumps([round(spent, 1), event.value]) + "\n")

    watcher = Watcher(on_event=on_event, stop_level=lambda: int(spent > limit_s or best <= aim))
    run_sweep(spec, home, watcher, source=source, trials=None, machines=Machines(device="cpu"), resume_anyway=True)
    record = study_to_record(started_study(spec.name, home))
    return {
        "arm": arm,
        "seed": seed,
        "course": [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else [],
        "seconds": round(sum(trial.seconds for trial in record.trials), 1),
        "trials": len({trial.attrs.position for trial in record.trials if trial.params}),
        "full": [[round(t.seconds, 1), t.value] for t in record.complete] if arm in (POOL, AGAIN) else [],
        # What another study can learn from, on a machine where this one was not run.
        "scored": [[dict(t.params), dict(t.intermediate), t.value] for t in record.newest] if arm == PROMOTION else [],
        **{key: provenance("cpu")[key] for key in ("git_commit", "cpu", "cores")},
        "date": time.strftime("%Y-%m-%d"),
    }


def fashion_images(home: Home) -> Path:
    """The first 5,000 images of Fashion-MNIST's training set, as a file that DATA can name."""
    path = home.within("search", "fashion5000.npz")
    if not path.is_file():
        pixels = np.frombuffer(gzip.decompress(_FASHION.read_bytes()), np.uint8, offset=16)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=pixels.reshape(-1, 28, 28)[:5000])
    return path


def table(name: str) -> str:
    """Markdown: how often, how early, and how badly at worst each arm was as good as the pool."""
    found = rows(name)
    pool = [full for row in found if row["arm"] == POOL for full in row["full"]]
    if len(pool) < N:
        return f"{name}: {len(pool)} trials in the pool; at least {N} are needed."
    units = {cpu: unit(found, cpu) for cpu in sorted({row["cpu"] for row in found})}
    units = {cpu: seconds for cpu, seconds in units.items() if math.isfinite(seconds)}
    scores = [score for _, score in pool]
    aim, rng = goal(scores), np.random.default_rng(0)
    lines = [
        f"{name}: goal {aim:.1f}, the expected best of {N} of {len(pool)} full random trials; a unit is "
        + ", ".join(f"{seconds:.0f} s on {cpu}" for cpu, seconds in units.items())
        + ".",
        "",
        "| arm | sweeps | as good at N/3 | chance (95 %) | ratio of the mean (95 %) | best/goal at N/3, worst decile |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for arm in ARMS[1:-1]:
        sweeps = [row for row in found if row["arm"] == arm and row["cpu"] in units]
        if not sweeps:
            continue
        courses = [[(spent / units[row["cpu"]], score) for spent, score in row["course"]] for row in sweeps]
        ends = np.array([best_at(course, N / 3) for course in courses])
        won = int((ends <= aim).sum())
        chance = stats.binomtest(won, len(ends)).proportion_ci()
        drawn = []
        for _ in range(_RESAMPLED):
            again = [courses[i] for i in rng.integers(len(courses), size=len(courses))]
            drawn.append(ratio(again, goal(rng.choice(scores, len(scores)))))
        low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")
        worst = np.percentile(ends, 90, method="nearest") / aim
        lines.append(
            f"| {arm} | {len(ends)} | {won} | {won / len(ends):.2f} ({chance.low:.2f} to {chance.high:.2f}) | "
            f"{_shown(ratio(courses, aim))} ({_shown(low)} to {_shown(high)}) | {_shown(worst)} |"
        )
    return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "never"


def figure(out: Path) -> None:
    """Best score so far against compute, median and deciles of each arm, a panel a data set."""
    import seaborn as sns
    from matplotlib import pyplot as plt

    names = [name for name in SETS if unit(rows(name), provenance("cpu")["cpu"]) > 0 or rows(name)]
    sns.set_theme(style="whitegrid")
    panels, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False)
    at = np.linspace(0.5, N / 3, 60)
    for axis, name in zip(axes[0], names, strict=True):
        found = rows(name)
        for arm in ARMS[1:-1]:
            sweeps = [row for row in found if row["arm"] == arm]
            if not sweeps:
                continue
            courses = [[(spent / unit(found, row["cpu"]), score) for spent, score in row["course"]] for row in sweeps]
            best = np.array([[best_at(course, compute) for compute in at] for course in courses])
            low, middle, high = np.percentile(best, [10, 50, 90], axis=0, method="nearest")
            (line,) = axis.plot(at, middle, label=arm)
            axis.fill_between(at, low, high, alpha=0.15, color=line.get_color())
        scores = [score for row in found if row["arm"] == POOL for _, score in row["full"]]
        if len(scores) >= N:
            axis.axhline(goal(scores), color="black", linewidth=1, label=f"random search, {N} full trials")
        axis.set(title=name, xlabel="compute (full random trials)", ylabel="best FID so far", yscale="log")
        axis.legend()
    panels.tight_layout()
    panels.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="do", required=True)
    running = commands.add_parser("run")
    running.add_argument("images", choices=SETS)
    running.add_argument("--data", type=Path)
    running.add_argument("--part", default="0/1", help="K/N: every N-th sweep, from the K-th")
    running.add_argument("--arm", choices=ARMS, action="append", help="only these")
    commands.add_parser("report")
    commands.add_parser("figure").add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.do == "report":
        print("\n\n".join(table(name) for name in SETS))
    elif arguments.do == "figure":
        figure(arguments.out)
    else:
        run_missing(arguments)


def run_missing(arguments: argparse.Namespace) -> None:
    """Run the sweeps that the results file does not have."""
    home, name = Home.from_environment(), arguments.images
    source = fashion_images(home) if name == "fashion32" else arguments.data
    cpu = provenance("cpu")["cpu"]
    first, step = (int(number) for number in arguments.part.split("/"))
    if math.isnan(unit(rows(name), cpu)) and len(rows(name)) >= 3 * N // _POOL_TRIALS:
        for seed in range(_FIRST_SEED, _FIRST_SEED + _AGAIN):
            if (AGAIN, seed, cpu) not in {(row["arm"], row["seed"], row["cpu"]) for row in rows(name)}:
                run_and_keep(name, AGAIN, seed, home, source)
    for arm, seed in jobs(name)[first::step]:
        done = rows(name)
        if (arguments.arm and arm not in arguments.arm) or (arm, seed) in {(row["arm"], row["seed"]) for row in done}:
            continue
        scores = [score for row in done if row["arm"] == POOL for _, score in row["full"]]
        if arm != POOL and len(scores) >= N:
            run_and_keep(name, arm, seed, home, source, unit(done, cpu) * N / 3, goal(scores))
        else:
            run_and_keep(name, arm, seed, home, source)


def run_and_keep(
    name: str, arm: str, seed: int, home: Home, source: Path | None, limit_s: float = math.inf, aim: float = -math.inf
) -> None:
    row = run_one(name, arm, seed, home, source, limit_s, aim)
    with results_path(name).open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(name, arm, seed, f"{row['seconds']:.0f} s", row["course"][-1:], flush=True)


if __name__ == "__main__":
    main()
