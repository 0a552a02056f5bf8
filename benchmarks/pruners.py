"""Which pruner and rungs? Replays recorded full curves of random configurations under each of Optuna's pruners.

    harness sweep benchmarks/studies/mnist32_curves.toml        # records the curves (nothing is pruned)
    python -m benchmarks.pruners mnist32_curves                 # replays them
    python -m benchmarks.pruners mnist32 --curves benchmarks/results/rungs-mnist32.jsonl     # those of benchmarks.rungs

Each replay draws ``--trials`` of the recorded configurations in random order. Cost: kimg trained, and trials that
reach the final score; seconds are training, rungs and final scores together, at the recorded median speeds; *ended* is
when the last trial was done. Regret: final score of the best one that was not pruned, less that of the best one drawn.
Those that diverged are drawn as others are. ``--seconds`` asks another question of the same replays: the best final
score that is there after so long. With ``--workers`` there are several trials at once, each as quick as one alone.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

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

from benchmarks.rungs import rows
from harness.home import Home
from harness.store.samplers import AsyncPercentilePruner, PositionView
from harness.store.studies import started_study, study_to_record
from harness.sweep.worker import DIVERGED_VALUE

RUNGS = (
    (3, 9), (6, 12), (6, 18), (6, 24), (6, 12, 27), (6, 12, 54), (6, 18, 54), (6, 54), (9,), (9, 18), (9, 24), (9, 27),
    (9, 18, 24), (9, 18, 27), (12,), (12, 24), (12, 27), (12, 54), (12, 18, 27), (12, 24, 54), (12, 30, 54), (18,),
    (18, 27), (18, 54), (18, 36, 54), (24, 54), (27,), (54,),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A configuration trained in full: its rung scores by images shown, its final score, and the seconds of both."""

    rungs: dict[int, float]
    final: float
    train_s: float | None
    score_s: float | None
    rung_s: float | None = None


def from_study(name: str) -> tuple[list[Curve], float]:
    """(curves, kimg) of a study in the database that pruned nothing."""
    record = study_to_record(started_study(name, Home.from_environment()))
    curves, marks = [], {mark for trial in record.complete for mark in trial.intermediate}
    for trial in record.complete:
        score_s = trial.attrs.score_s
        train_s = None if score_s is None else trial.seconds - score_s
        rungs = {mark: trial.intermediate.get(mark, DIVERGED_VALUE) for mark in marks}
        curves.append(Curve(rungs=rungs, final=float(trial.value or 0.0), train_s=train_s, score_s=score_s))
    return curves, float(record.attrs.spec["budget"]["kimg"])


def from_file(path: Path, protocol: str) -> tuple[list[Curve], float]:
    """(curves, kimg) that ``benchmarks.rungs record`` wrote, with the rung scores of one protocol."""
    recorded = rows(path)
    marks = sorted({float(mark) for row in recorded for mark in row["scores"][protocol]})
    curves = []
    for row in recorded:
        scores = row["scores"][protocol]
        finished = "diverged" not in row
        curves.append(
            Curve(
                rungs={round(mark * 1000): scores.get(f"{mark:g}", DIVERGED_VALUE) for mark in marks},
                final=row["final"],
                train_s=sum(row["s"]["train"]) if finished else None,
                score_s=row["s"]["final"][0] if finished else None,
                rung_s=statistics.median(row["s"][protocol]) if finished else None,
            )
        )
    return curves, marks[-1]


def candidates(rungs: tuple[int, ...], kimg: float) -> dict[str, Callable[[], BasePruner]]:
    low, high = rungs[0] * 1000, round(kimg * 1000)
    made: dict[str, Callable[[], BasePruner]] = {
        "median, 4 startup": lambda: MedianPruner(n_startup_trials=4),
        "median, 2 startup": lambda: MedianPruner(n_startup_trials=2),
        "best third, 2 startup": lambda: PercentilePruner(33.3, n_startup_trials=2),
        "best quarter, 2 startup": lambda: PercentilePruner(25.0, n_startup_trials=2),
        "best quarter, 1 startup": lambda: PercentilePruner(25.0, n_startup_trials=1),
        "best quarter, 1 startup or running": lambda: AsyncPercentilePruner(25.0, n_startup_trials=1),
    }
    for factor in (2, 3):
        if all(b >= a * factor for a, b in zip(rungs, (*rungs[1:], kimg), strict=True)):
            made[f"halving, 1 in {factor}"] = partial(SuccessiveHalvingPruner, low, factor)
            made[f"hyperband, 1 in {factor}"] = partial(HyperbandPruner, low, high, factor)
    return made


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Seconds of a training, of a score at a rung, and of the final one: medians of what was recorded."""

    train: float
    rung: float
    final: float


def speeds(curves: list[Curve]) -> Speeds:
    def median(name: str) -> float:
        found = [value for curve in curves if (value := getattr(curve, name)) is not None]
        return statistics.median(found) if found else 0.0

    return Speeds(train=median("train_s"), rung=median("rung_s"), final=median("score_s"))


@dataclass(kw_only=True)
class Replay:
    """What a pruner would have spent, and the final scores that it would have let be.

    ``finals`` are (seconds since the first trial began, final score), ``ended`` when the last trial did.
    """

    kimg: float = 0.0
    rungs: int = 0
    finals: list[tuple[float, float]] = field(default_factory=list)
    ended: float = 0.0

    def seconds(self, took: Speeds, kimg: float) -> float:
        return self.kimg / kimg * took.train + self.rungs * took.rung + len(self.finals) * took.final

    def best(self, within_s: float = math.inf) -> float:
        """Infinite where none is there in time."""
        return min((score for ended, score in self.finals if ended <= within_s), default=math.inf)


def replay(
    curves: list[Curve],
    pruner: BasePruner,
    rungs: tuple[int, ...],
    kimg: float,
    name: str,
    took: Speeds,
    workers: int = 1,
) -> Replay:
    # Hyperband draws its brackets from the study's name.
    stored = optuna.create_study(study_name=name)
    study = PositionView(stored, sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
    lasts = [(after - before) / kimg * took.train for before, after in pairwise((0, *rungs, kimg))]
    done, drawn = Replay(), iter(curves)
    # What comes next of each worker: (when, its trial's number, the trial, its curve, how many rungs it has behind it).
    coming: list[tuple[float, int, optuna.Trial, Curve, int]] = []

    def begin(now: float) -> None:
        if curve := next(drawn, None):
            trial = study.ask()
            heapq.heappush(coming, (now + lasts[0] + took.rung, trial.number, trial, curve, 0))

    for _ in range(workers):
        begin(0.0)
    while coming:
        now, number, trial, curve, behind = heapq.heappop(coming)
        if behind == len(rungs):
            done.kimg += kimg
            done.finals.append((now, curve.final))
            study.tell(trial, curve.final)
        else:
            mark = rungs[behind]
            trial.report(curve.rungs[mark * 1000], mark * 1000)
            done.rungs += 1
            if not trial.should_prune():
                scored = took.rung if behind + 1 < len(rungs) else took.final
                heapq.heappush(coming, (now + lasts[behind + 1] + scored, number, trial, curve, behind + 1))
                continue
            done.kimg += mark
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        done.ended = now
        begin(now)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--curves", type=Path, help="a file of benchmarks.rungs, instead of a study in the database")
    parser.add_argument("--protocol", default="FID, MobileNetV2, 250", help="of the file's rung scores")
    parser.add_argument("--trials", type=int, default=14)
    parser.add_argument("--replays", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rungs", type=lambda text: tuple(map(int, text.split(","))), help="only these, as in 12,24")
    parser.add_argument("--seconds", type=float, help="shows the best final score that is there after so many, too")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    done, kimg = from_file(arguments.curves, arguments.protocol) if arguments.curves else from_study(arguments.study)
    diverged = sum(curve.final >= DIVERGED_VALUE for curve in done)
    print(f"{len(done)} configurations with full curves, of which {diverged} diverged;")
    print("Spearman of the rung score with the final score:")
    steps = sorted(done[0].rungs)
    for step in steps:
        rho = spearmanr([curve.rungs[step] for curve in done], [curve.final for curve in done]).statistic
        print(f"  {step / 1000:g} kimg: {rho:.2f}")
    took = speeds(done)
    clock = "CPU seconds" if arguments.curves else "one thread of a worker"
    print(
        f"a full trial trains {took.train:.0f} s and is scored in {took.final:.0f} s, at a rung in {took.rung:.1f} s "
        f"(medians, {clock})\n"
    )
    within = arguments.seconds
    timed = (f" best in {within:g} s, mean |", "---:|") if within else ("", "")
    print(
        f"| rungs (kimg) | pruner | kimg trained | finished | seconds | ended | regret, mean | regret, 90 % |{timed[0]}"
    )
    print(f"|---|---|---:|---:|---:|---:|---:|---:|{timed[1]}")
    tried = (arguments.rungs,) if arguments.rungs else RUNGS
    usable = [rungs for rungs in tried if all(rung * 1000 in steps for rung in rungs)]
    for rungs in usable:
        for name, make in {**({"none": NopPruner} if rungs == usable[0] else {}), **candidates(rungs, kimg)}.items():
            rng = random.Random(0)
            replays, regrets, in_time = [], [], []
            for number in range(arguments.replays):
                drawn = rng.sample(done, len(done))
                few = drawn[: arguments.trials]
                again = partial(replay, name=f"replay-{number}", took=took, workers=arguments.workers)
                replays.append(again(few, make(), rungs, kimg))
                regrets.append(replays[-1].best() - min(curve.final for curve in few))
                if within:
                    in_time.append(again(drawn, make(), rungs, kimg).best(within))
            trained = statistics.mean(each.kimg for each in replays)
            finished = statistics.mean(len(each.finals) for each in replays)
            seconds = statistics.mean(each.seconds(took, kimg) for each in replays)
            ended = statistics.mean(each.ended for each in replays)
            ninety = statistics.quantiles(regrets, n=10)[-1]
            print(
                f"| {', '.join(map(str, rungs))} | {name} | {trained:.0f} | {finished:.1f} | {seconds:.0f} "
                f"| {ended:.0f} | {statistics.mean(regrets):.1f} | {ninety:.1f} |"
                + (f" {statistics.mean(in_time):.1f} |" if within else "")
            )


if __name__ == "__main__":
    main()
