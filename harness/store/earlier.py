"""Trials of earlier studies, by rank, for a new study's sampler to start from."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import TrialState

from harness.errors import UsageError
from harness.spec.resolved import ResolvedStudy
from harness.store.promotion import EARLIER, Lesson, in_space, is_baseline, merits, spread
from harness.store.records import TrialAttrs
from harness.store.samplers import PositionView


def lessons(studies: Sequence[optuna.Study], spec: ResolvedStudy) -> list[Lesson]:
    """Trials of earlier studies, at most ``EARLIER``, spread evenly over the ranks of each.

    By rank, because scores of other images or budgets are not comparable. A UsageError if a study has no scored trial,
    or shares no searched parameter with this one.
    """
    learned = []
    for study in studies:
        trials = [
            trial
            for trial in PositionView(study).get_trials(deepcopy=False)
            if not is_baseline(trial) and not TrialAttrs.parse(trial.user_attrs).diverged
        ]
        steps = sorted({step for trial in trials for step in trial.intermediate_values})
        levels = [{t.number: v for t in trials if (v := t.intermediate_values.get(step)) is not None} for step in steps]
        levels.append({t.number: t.values[0] for t in trials if t.state == TrialState.COMPLETE and t.values})
        known = merits([level for level in levels if level]) if any(levels) else {}
        ranked = sorted((trial for trial in trials if trial.number in known), key=lambda trial: known[trial.number])
        shared = [in_space(trial.params, spec) for trial in ranked]
        if not any(shared):
            raise UsageError(
                f"sampler.from: study {study.study_name} has no scored trial with a parameter that is searched here",
                "Name studies with some of the same parameters under [space], or leave sampler.from out.",
            )
        chosen = spread(len(ranked), max(1, EARLIER // len(studies)))
        learned += [(shared[at], known[ranked[at].number]) for at in chosen if shared[at]]
    return sorted(learned, key=lambda lesson: lesson[1])
