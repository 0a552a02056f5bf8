"""What a sweep would take, computed from what was measured."""

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

# Trials that must have ended before they say how much pruning saves.
_FEWEST_ENDED = 3


@dataclass(frozen=True, slots=True)
class TrialWork:
    """What a trial runs, on average: shares of a full training and of the final scoring, and rungs scored."""

    trained: float
    rungs: float
    scored: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a sweep of ``target`` trials takes with ``workers`` on a ``device``, measured with one worker's threads."""

    spec: ResolvedStudy
    configurations: Sequence[ConfigurationSpeed]
    scoring: ScoringTime
    target: int
    device: str
    workers: int

    def time(self, own: TrialWork | None) -> str:
        """How long the sweep takes: as its own trials were pruned, else between pruning nothing and all that can be."""
        spec, scoring = self.spec, self.scoring
        final_s = scoring.final_s + ((spec.scoring.sampling_seeds or 1) - 1) * scoring.again_s
        training_s = {each.name: each.s_per_kimg * spec.budget.kimg for each in self.configurations}
        searched = [training_s[each.name] for each in self.configurations if not each.baseline]
        typical = statistics.mean(searched or list(training_s.values()))
        recipes = [preset.name for preset in spec.presets[: self.target] if preset.recipe]
        # More workers than cores, or several on one GPU, are no faster than one each.
        devices = usable_cores() if self.device == "cpu" else len(visible_gpus())
        at_once = min(self.workers, devices, self.target)
        full = TrialWork(trained=1, rungs=len(spec.budget.marks) * spec.has_rungs, scored=1)

        def trial_s(work: TrialWork, full_training_s: float) -> float:
            return work.trained * full_training_s + work.rungs * scoring.rung_s + work.scored * final_s

        def total(works: Sequence[TrialWork]) -> str:
            """Recipes run in full, each of the others does its work."""
            baselines_s = sum(trial_s(full, training_s.get(name, typical)) for name in recipes)
            searching_s = sum(trial_s(work, typical) for work in works)
            return duration((baselines_s + searching_s) / at_once + scoring.references_s)

        on = f"on this {self.device}{f', {at_once} trials at once' if at_once > 1 else ''}"
        others = self.target - len(recipes)
        budget, came = spec.budget, spec.funnel(others)
        to = {r: TrialWork(r / budget.kimg, sum(mark <= r for mark in budget.marks), 0) for r in budget.rungs}
        if not budget.rungs or spec.pruner.name == "none":
            says = f"about {total([full] * others)} {on}, nothing is pruned"
        elif spec.promotions:
            ends = zip(to.values(), came, came[1:], strict=False)
            works = [*(work for work, n, beyond in ends for _ in range(n - beyond)), *[full] * came[-1]]
            says = f"about {total(works)} {on}: {others} trials are tried, {came[-1]} of them trained to the end"
        elif own is not None:
            says = (
                f"about {total([own] * others)} {on}, if pruning continues as so far: its trials, recipes aside, "
                f"trained {100 * own.trained:.0f} % of a full length on average"
            )
        else:
            rungs = earliest_rungs(spec, self.target)
            least = [full if rung is None else to[rung] for rung in rungs]
            first = "the first rung of their bracket" if spec.pruner.name == "hyperband" else "the first rung"
            says = (
                f"about {total([full] * others)} at most {on} (nothing pruned), "
                f"{total(least)} at least (all but {len(recipes) + rungs.count(None)} pruned at {first})"
            )
        scored = duration(full.rungs * scoring.rung_s + final_s)
        return (
            f"{says}; a full trial trains {duration(typical)} and scores {scored}, references once "
            f"{duration(scoring.references_s)}; provided that the drawn configurations are typical"
        )

    def disk(self, home: Home, store_bytes: int, grid_bytes: int) -> str:
        """What is kept of trials that finish, here and in MLflow's artifacts, and of images still to be prepared."""
        final, rung = self.spec.scoring.final, self.spec.scoring.rung
        references = {
            (features_of(s), s.reference, s.split): 4 * s.reference * WIDTHS[s.extractor] for s in (final, rung)
        }
        features = sum(references.values())
        models = statistics.mean(each.checkpoint_bytes + each.weights_bytes for each in self.configurations)
        grids = (1 + len(self.spec.budget.marks)) * grid_bytes  # and one of the untrained generator
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
    """The mean work of the trials that can be pruned; None with fewer than three that ended, or another budget."""
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
    """The earliest end (kimg) of each of a sweep's trials, recipes aside; None: it finishes whatever its score.

    The pruner waits until enough others reached a rung, recipes among them, or never prunes the first that it judges
    there. Hyperband does so in each bracket; in a bracket that begins after the last rung it prunes nothing.
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
