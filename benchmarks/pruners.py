"""Which pruner and rungs? Replays recorded full curves of random configurations under each of Optuna's pruners.

    harness sweep benchmarks/studies/mnist32_curves.toml        # records the curves (nothing is pruned)
    python -m benchmarks.pruners mnist32_curves                 # replays them

Each replay draws ``--trials`` of the recorded configurations in random order. Cost: kimg trained, and trials that
reach the final score; seconds are both together, at the recorded median speeds. Regret: final score of the best one
that was not pruned, less that of the best one drawn.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from scipy.stats import spearmanr

from harness.home import Home
from harness.study.records import TrialRecord
from harness.sweep.storage import load_study, to_record

RUNGS = ((3, 9), (6, 12), (6, 18), (6, 24), (9,), (9, 18), (9, 24), (9, 18, 24), (12,), (12, 24))


def candidates(rungs: tuple[int, ...], kimg: float) -> dict[str, Callable[[], BasePruner]]:
    low, high = rungs[0] * 1000, round(kimg * 1000)
    made: dict[str, Callable[[], BasePruner]] = {
        "median, 4 startup": lambda: MedianPruner(n_startup_trials=4),
        "median, 2 startup": lambda: MedianPruner(n_startup_trials=2),
        "best third, 2 startup": lambda: PercentilePruner(33.3, n_startup_trials=2),
        "best quarter, 2 startup": lambda: PercentilePruner(25.0, n_startup_trials=2),
        "best quarter, 1 startup": lambda: PercentilePruner(25.0, n_startup_trials=1),
    }
    for factor in (2, 3):
        if all(b >= a * factor for a, b in zip(rungs, (*rungs[1:], kimg), strict=True)):
            made[f"halving, 1 in {factor}"] = lambda f=factor: SuccessiveHalvingPruner(low, f)
            made[f"hyperband, 1 in {factor}"] = lambda f=factor: HyperbandPruner(low, high, f)
    return made


def replay(
    trials: list[TrialRecord], pruner: BasePruner, rungs: tuple[int, ...], kimg: float, name: str
) -> tuple[float, int, float]:
    """(kimg trained, trials finished, best final score that was not pruned)."""
    # Hyperband draws its brackets from the study's name.
    study = optuna.create_study(study_name=name, pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    spent, finals = 0.0, []
    for recorded in trials:
        trial = study.ask()
        for rung in rungs:
            trial.report(recorded.intermediate[rung * 1000], rung * 1000)
            if trial.should_prune():
                spent += rung
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            spent += kimg
            finals.append(float(recorded.value or 0.0))
            study.tell(trial, recorded.value)
    return spent, len(finals), min(finals, default=float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--trials", type=int, default=14)
    parser.add_argument("--replays", type=int, default=300)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    record = to_record(load_study(arguments.study, Home.from_environment()))
    kimg = json.loads(record.attrs["spec"])["budget"]["kimg"]
    done = record.complete
    print(f"{len(done)} configurations with full curves; Spearman of the rung score with the final score:")
    for step in sorted(done[0].intermediate):
        rho = spearmanr([t.intermediate[step] for t in done], [t.value for t in done]).statistic
        print(f"  {step / 1000:g} kimg: {rho:.2f}")
    score_s = statistics.median(float(t.attrs["score_s"]) for t in done)
    train_s = statistics.median(t.seconds for t in done) - score_s
    print(f"a full trial trains {train_s:.0f} s and is scored in {score_s:.0f} s (medians, one thread of a worker)\n")
    print("| rungs (kimg) | pruner | kimg trained | finished | seconds | regret, mean | regret, 90 % |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for rungs in RUNGS:
        for name, make in {**({"none": NopPruner} if rungs == RUNGS[0] else {}), **candidates(rungs, kimg)}.items():
            rng = random.Random(0)
            rows = []
            for number in range(arguments.replays):
                drawn = rng.sample(done, min(arguments.trials, len(done)))
                spent, finished, best = replay(drawn, make(), rungs, kimg, f"replay-{number}")
                rows.append((spent, finished, best - min(float(t.value or 0.0) for t in drawn)))
            spent, finished, regret = zip(*rows, strict=True)
            seconds = statistics.mean(spent) / kimg * train_s + statistics.mean(finished) * score_s
            ninety = statistics.quantiles(regret, n=10)[-1]
            print(
                f"| {', '.join(map(str, rungs))} | {name} | {statistics.mean(spent):.0f} | "
                f"{statistics.mean(finished):.1f} | {seconds:.0f} | {statistics.mean(regret):.1f} | {ninety:.1f} |"
            )


if __name__ == "__main__":
    main()
