"""What does the default search save? Best final score against compute, beside random search with full trials.

    python -m benchmarks.compute run --seeds 5 --workers 2        # hours; sweeps that this commit has finished stay
    taskset -c 0 python -m benchmarks.compute run --seeds 5 --search default      # one worker, on one core
    python -m benchmarks.compute report                           # prints the table

Sweeps of ``mnist32``: as it is; without its presets; and random search that trains every trial in full. The compute of
a sweep is what its trials took, scoring included, in seconds of one worker. For searches that run at another time, or
with other workers, some of random search's first trials are run once more (``--search "random, full trials" --trials
4``): they tell how much slower that is.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from harness.home import Home
from harness.machine.processes import Machines
from harness.machine.provenance import provenance
from harness.spec.files import load_study_file
from harness.spec.resolved import ResolvedStudy
from harness.store.records import StudyRecord
from harness.store.studies import started_study, study_to_record
from harness.sweep.messages import Watcher
from harness.sweep.run import run_sweep

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "compute-mnist32.jsonl"
_RESAMPLED = 2000
SEARCHES = ("default", "default without presets", "random, full trials")
RANDOM = SEARCHES[-1]
# In turn, seed by seed: what is compared first, what explains it after.
_ORDER = (("default", RANDOM), ("default without presets",))


def search(kind: str, seed: int, workers: int, trials: int, commit: str) -> ResolvedStudy:
    """The study of one sweep, under a name of its own."""
    spec = load_study_file("mnist32")
    changes: dict[str, Any] = {
        "name": f"compute-{SEARCHES.index(kind)}-{seed}-{workers}-{trials}-{commit[:7]}",
        "sampler": spec.sampler.model_copy(update={"seed": 100 + seed}),
        "budget": spec.budget.model_copy(update={"trials": trials}),
    }
    if kind != "default":
        changes["presets"] = ()
    if kind == RANDOM:
        changes["sampler"] = changes["sampler"].model_copy(update={"name": "random"})
        changes["pruner"] = spec.pruner.model_copy(update={"name": "none"})
        changes["budget"] = changes["budget"].model_copy(update={"rungs": ()})
    return spec.model_copy(update=changes)


def course(record: StudyRecord) -> list[tuple[float, float]]:
    """(compute so far, best score so far) after each trial, in the order in which they ended."""
    spent, best, found = 0.0, float("inf"), []
    for trial in sorted((t for t in record.trials if t.ended), key=lambda t: t.ended):  # type: ignore[arg-type, return-value]
        spent += trial.seconds
        if trial.state == "COMPLETE" and trial.value is not None:
            best = min(best, trial.value)
        found.append((spent, best))
    return found


def rows() -> list[dict[str, Any]]:
    """What was run so far, sweeps of several commits and numbers of workers; the first line is about the machine."""
    return [json.loads(line) for line in OUT.read_text().splitlines()[1:]] if OUT.is_file() else []


def compute_to(runs: list[dict[str, Any]], goal: float) -> float:
    """Compute at which the mean over sweeps of the best score so far is as good as the goal; infinite where never."""
    spent = sorted({spent for row in runs for spent, _ in row["course"]})
    for at in spent:
        best = [min((b for s, b in row["course"] if s <= at), default=np.inf) for row in runs]
        if np.mean(best) <= goal:
            return float(at)
    return float("inf")


def saving(runs: list[dict[str, Any]], random: list[dict[str, Any]]) -> tuple[float, float, float]:
    """(share, low, high) of random search's compute to its own mean end, at which these sweeps are as good on average.

    The bounds are of the bootstrap over sweeps of both searches (95 %): the goal is drawn anew with them.
    """

    def share(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
        goal = float(np.mean([row["course"][-1][1] for row in theirs]))
        return compute_to(ours, goal) / compute_to(theirs, goal)

    def again(sweeps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [sweeps[i] for i in rng.integers(len(sweeps), size=len(sweeps))]

    rng = np.random.default_rng(0)
    drawn = [share(again(runs), again(random)) for _ in range(_RESAMPLED)]
    low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")
    return share(runs, random), float(low), float(high)


def _shown(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "never"


def _key(row: dict[str, Any]) -> tuple[str, int, int, str]:
    return row["search"], row["workers"], row["trials"], row["git_commit"]


def slowness(again: list[dict[str, Any]], random: list[dict[str, Any]]) -> float:
    """How many times as long random search's first trials took when they were run once more, of the same seeds."""
    before = {row["seed"]: row["course"] for row in random}
    pairs = [(row["course"][-1][0], before[row["seed"]][len(row["course"]) - 1][0]) for row in again]
    return float(sum(later for later, _ in pairs) / sum(first for _, first in pairs))


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: the end of each search, and the compute at which it is as good as random search at its end."""
    alike: dict[tuple[str, int, int, str], list[dict[str, Any]]] = {}
    for row in found:
        alike.setdefault(_key(row), []).append(row)
    randoms = {key: runs for key, runs in alike.items() if key[0] == RANDOM}
    if not randoms:
        return "No sweep of random search has been run yet, which is what the others are compared with."
    whole = max(randoms, key=lambda key: sum(len(row["course"]) for row in randoms[key]))
    random = randoms[whole]
    goal = float(np.mean([row["course"][-1][1] for row in random]))
    lines = [
        f"Random search with full trials ends at {goal:.1f} on average. As good is a search from the compute on at "
        "which the mean of its sweeps' best scores so far is that; random search itself after its last improvement. "
        "*Never*: not within its sweeps, or not within enough of those that the bootstrap drew. Compute is in seconds "
        "of random search's sweeps: *slower* is how many times as long its first trials took when they were run once "
        "more as the search was, and by that its seconds are divided.",
        "",
        "| search | trials | workers | commit | sweeps | slower | compute (s) | best score (95 %) | until as good (s) "
        "| of random search's (95 %) |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for key, measured in alike.items():
        if key in randoms and key != whole:
            continue
        kind, workers, trials, commit = key
        again = [row for other, rows in randoms.items() if (other[1], other[3]) == (workers, commit) for row in rows]
        factor = slowness(again, random) if again else 1.0
        runs = [{**row, "course": [(spent / factor, best) for spent, best in row["course"]]} for row in measured]
        ends = np.array([row["course"][-1] for row in runs])
        scores = ends[:, 1]
        share, low, high = saving(runs, random)
        shown, of_random = f"{scores.mean():.1f}", _shown(share, 2)
        if len(runs) > 1:
            half = stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / len(scores) ** 0.5
            shown += f" ± {half:.1f}"
            of_random += f" ({_shown(low, 2)} to {_shown(high, 2)})"
        lines.append(
            f"| {kind} | {trials} | {workers} | {commit[:7]} | {len(runs)} | {factor:.2f} | {ends[:, 0].mean():.0f} "
            f"| {shown} | {_shown(compute_to(runs, goal), 0)} | {'–' if key == whole else of_random} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["run", "report"])
    parser.add_argument("--search", choices=SEARCHES, action="append", help="only these")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trials", type=int, default=12)
    arguments = parser.parse_args()
    if arguments.do == "report":
        print(table(rows()))
        return
    home = Home.from_environment()
    about = provenance("cpu")
    if not OUT.is_file():
        OUT.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), **about}) + "\n")
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    same = (arguments.workers, arguments.trials, about["git_commit"])
    for kind, seed in ((kind, seed) for kinds in _ORDER for seed in seeds for kind in kinds):
        if kind not in (arguments.search or SEARCHES) or (kind, *same, seed) in {(*_key(r), r["seed"]) for r in rows()}:
            continue
        spec = search(kind, seed, *same)
        run_sweep(
            spec, home, Watcher(on_event=lambda event: None, stop_level=lambda: 0), source=None, trials=None,
            machines=Machines(workers=arguments.workers), resume_anyway=False,
        )  # fmt: skip
        of = dict(zip(("search", "workers", "trials", "git_commit"), (kind, *same), strict=True))
        row = {**of, "seed": seed, "course": course(study_to_record(started_study(spec.name, home)))}
        with OUT.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(kind, seed, row["course"][-1], flush=True)


if __name__ == "__main__":
    main()
