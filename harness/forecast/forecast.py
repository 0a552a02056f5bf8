"""A sweep's time and disk, computed from measured speeds."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harness.forecast.speed import WIDTHS, ConfigurationSpeed, ScoringTime, features_of
from harness.home import Home
from harness.machine.processes import usable_cores, visible_gpus
from harness.spec.resolved import ResolvedStudy
from harness.store.optuna_private import HyperbandOfView
from harness.store.records import StudyRecord
from harness.store.samplers import kimg_to_images, make_pruner, study_in_memory
from harness.text import duration

# Ended trials from which the effect of pruning is estimated, at least.
_FEWEST_ENDED = 3


@dataclass(frozen=True, slots=True)
class TrialWork:
    """A trial's mean work: shares of a full training and of the final scoring, and rungs scored."""

    trained: float
    rungs: float
    scored: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """The cost of a sweep of ``target`` trials with ``workers`` on a ``device``; speeds are those of one worker."""

    spec: ResolvedStudy
    configurations: Sequence[ConfigurationSpeed]
    scoring: ScoringTime
    target: int
    device: str
    workers: int

    def time(self, own: TrialWork | None) -> str:
        """How long the sweep takes: with the pruning so far, else from none pruned to all that can be."""
        spec, scoring = self.spec, self.scoring
        least, most = self._works(own)
        total = duration(self._total_s(most))
        on = f"on this {self.device}{f', {self._at_once} trials at once' if self._at_once > 1 else ''}"
        if not spec.budget.rungs or spec.pruner.name == "none":
            says = f"about {total} {on}, nothing is pruned"
        elif spec.promotions:
            says = (
                f"about {total} {on}: {len(most)} trials are tried, {most.count(self._full)} of them trained to the end"
            )
        elif own is not None:
            says = (
                f"about {total} {on}, if pruning continues as so far: trials other than recipes "
                f"trained {100 * own.trained:.0f} % of a full length on average"
            )
        else:
            first = "the first rung of their bracket" if spec.pruner.name == "hyperband" else "the first rung"
            says = (
                f"about {total} at most {on} (nothing pruned), {duration(self._total_s(least))} at least "
                f"(all but {len(self._recipes) + least.count(self._full)} pruned at {first})"
            )
        scored = duration(self._full.rungs * scoring.rung_s + self._final_s)
        return (
            f"{says}; a full trial trains {duration(self._typical_s)} and scores {scored}; the real "
            f"images' statistics take {duration(scoring.references_s)} once; this assumes that the drawn "
            "configurations are typical"
        )

    def at_least_s(self, own: TrialWork | None) -> float:
        """Seconds that the sweep takes if every trial that can be pruned is."""
        return self._total_s(self._works(own)[0])

    def _works(self, own: TrialWork | None) -> tuple[list[TrialWork], list[TrialWork]]:
        """The work of each trial, without recipes, if as many as possible are pruned, and if none is."""
        spec, budget, others = self.spec, self.spec.budget, self.target - len(self._recipes)
        full = [self._full] * others
        if not budget.rungs or spec.pruner.name == "none":
            return full, full
        to = {r: TrialWork(r / budget.kimg, sum(mark <= r for mark in budget.marks), 0) for r in budget.rungs}
        if spec.promotions:
            came = spec.funnel(others)
            ends = zip(to.values(), came, came[1:], strict=False)
            works = [*(work for work, n, beyond in ends for _ in range(n - beyond)), *[self._full] * came[-1]]
            return works, works
        if own is not None:
            return [own] * others, [own] * others
        return [self._full if rung is None else to[rung] for rung in earliest_rungs(spec, self.target)], full

    def _total_s(self, works: Sequence[TrialWork]) -> float:
        """Seconds of a sweep with these works, and all recipes in full."""

        def trial_s(work: TrialWork, full_training_s: float) -> float:
            rungs_s = work.rungs * self.scoring.rung_s
            return work.trained * full_training_s + rungs_s + work.scored * self._final_s

        baselines_s = sum(trial_s(self._full, self._training_s.get(name, self._typical_s)) for name in self._recipes)
        searching_s = sum(trial_s(work, self._typical_s) for work in works)
        return (baselines_s + searching_s) / self._at_once + self.scoring.references_s

    @property
    def _full(self) -> TrialWork:
        return TrialWork(trained=1, rungs=len(self.spec.budget.marks) * self.spec.has_rungs, scored=1)

    @property
    def _final_s(self) -> float:
        return self.scoring.final_s + ((self.spec.scoring.sampling_seeds or 1) - 1) * self.scoring.again_s

    @property
    def _training_s(self) -> dict[str, float]:
        return {each.name: each.s_per_kimg * self.spec.budget.kimg for each in self.configurations}

    @property
    def _typical_s(self) -> float:
        searched = [self._training_s[each.name] for each in self.configurations if not each.baseline]
        return statistics.mean(searched or list(self._training_s.values()))

    @property
    def _recipes(self) -> list[str]:
        return [preset.name for preset in self.spec.presets[: self.target] if preset.recipe]

    @property
    def _at_once(self) -> int:
        # More workers than cores gain nothing; the gain of several trials on one GPU is unknown here.
        devices = usable_cores() if self.device == "cpu" else len(visible_gpus())
        return min(self.workers, devices, self.target)

    def disk(self, home: Home, store_bytes: int, grid_bytes: int) -> str:
        """The disk for finished trials, here and in MLflow's artifacts, and for images still to be prepared."""
        final, rung = self.spec.scoring.final, self.spec.scoring.rung
        references = {
            (features_of(s), s.n_reference, s.split): 4 * s.n_reference * WIDTHS[s.extractor] for s in (final, rung)
        }
        features = sum(references.values())
        models = statistics.mean(each.checkpoint_bytes + each.weights_bytes for each in self.configurations)
        grids = (2 + len(self.spec.budget.drawn)) * grid_bytes  # and those of its beginning and end
        elsewhere = bool(os.environ.get("MLFLOW_TRACKING_URI"))
        here = models + grids
        copies = models + grids + grid_bytes  # the last grid is logged twice
        total = store_bytes + features + self.target * (here if elsewhere else here + copies)
        where = "and as much on the MLflow server" if elsewhere else f"and {copies / 1e6:,.1f} MB of copies for MLflow"
        return (
            f"{total / 1e9:,.2f} GB in {home.root} at most: images {store_bytes / 1e9:,.2f} GB"
            f"{'' if store_bytes else ' more'}, references {features / 1e9:,.2f} GB, {self.target} trials of "
            f"{here / 1e6:,.1f} MB (checkpoint, weights, sample grids) {where}"
        )


def mean_work(spec: ResolvedStudy, record: StudyRecord | None) -> TrialWork | None:
    """The mean work of the trials that can be pruned; None if fewer than three ended, or the budget differs."""
    if record is None or record.attrs.spec["budget"]["kimg"] != spec.budget.kimg:
        return None
    ended = [
        (trial.state == "COMPLETE", max(trial.intermediate, default=0) / 1000)
        for trial in record.trials
        if trial.state in ("COMPLETE", "PRUNED") and not trial.attrs.recipe
    ]
    if len(ended) < _FEWEST_ENDED:
        return None
    marks = spec.budget.marks if spec.has_rungs else ()
    return TrialWork(
        trained=statistics.mean(1.0 if done else min(1.0, kimg / spec.budget.kimg) for done, kimg in ended),
        rungs=statistics.mean(len(marks) if done else sum(mark <= kimg for mark in marks) for done, kimg in ended),
        scored=statistics.mean(done for done, _ in ended),
    )


def earliest_rungs(spec: ResolvedStudy, target: int) -> list[float | None]:
    """The earliest end (kimg) of each of a sweep's trials, without recipes; None: it is never pruned.

    The pruner waits until enough others, recipes included, have reached a rung, or never prunes the first trial that it
    judges there. Hyperband does so in each bracket; in a bracket that begins after the last rung it prunes nothing.
    """
    rungs = spec.budget.rungs
    recipes = [position for position, preset in enumerate(spec.presets[:target]) if preset.recipe]
    positions = [position for position in range(target) if position not in recipes]
    if spec.pruner.name in ("median", "percentile"):
        waited_for = max(1, spec.pruner.n_startup_trials) - len(recipes)
        return [None if count < waited_for else rungs[0] for count in range(len(positions))]
    pruner, study = make_pruner(spec), study_in_memory(spec.name)
    ends: list[float | None] = []
    judged: set[int] = set()
    for position in positions:
        first = pruner.first_rung(study, position) if isinstance(pruner, HyperbandOfView) else kimg_to_images(rungs[0])
        rung = next((rung for rung in rungs if kimg_to_images(rung) >= first), None)
        ends.append(rung if first in judged else None)
        judged.add(first)
    return ends
