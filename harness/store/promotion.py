"""Promotion: every trial is paused at its rungs, and only the best of those that came there continue.

The promotion variant of asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning", algorithm 2). A verdict is never final while the study runs: a paused trial may be promoted
later, when more trials were scored at its rung.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from statistics import NormalDist

# By trial, lower is better.
Losses = Mapping[int, float]


def next_promotion(
    rungs: Sequence[tuple[Losses, int]], paused: Mapping[int, int], *, closing: bool, gone: Container[int] = ()
) -> int | None:
    """The paused trial that continues next, or None where none may.

    Of n trials scored at a rung the best ⌊n / keep⌋ may continue; the furthest goes first. Once no new trial is to
    come, ⌈n / keep⌉ may, so that every study ends with a final score; then the nearest goes first, because each rung
    compares best when all that come to it are there.

    Args:
        rungs: of each rung, the earliest first: losses of the trials scored there, and ``keep``.
        paused: by trial, the index of the rung at which it is paused.
        closing: whether no new trial is to come.
        gone: trials that count among the n and cannot continue: an earlier end of the study pruned them.
    """

    def best(index: int, count: int) -> int | None:
        losses = rungs[index][0]
        order = sorted(losses, key=lambda trial: (losses[trial], trial))
        chosen = [trial for trial in order if trial not in gone][:count]
        return next((trial for trial in chosen if paused.get(trial) == index), None)

    for index in reversed(range(len(rungs))):
        losses, keep = rungs[index]
        if (found := best(index, len(losses) // keep)) is not None:
            return found
    for index in range(len(rungs) if closing else 0):
        losses, keep = rungs[index]
        if (found := best(index, -(-len(losses) // keep))) is not None:
            return found
    return None


def order_of_merit(levels: Sequence[Losses]) -> list[int]:
    """All trials that have a loss at the first level, the best first.

    Trials are in the order of the first level; those that came to a later one change places among themselves, by their
    losses there. So trials with the same furthest level are in its order, and one that came further keeps a place that
    a trial of its rank at the first level has earned.

    Args:
        levels: losses at each rung, the earliest first, then final ones; a later level's trials are in the earlier.
    """
    first = levels[0]
    order = sorted(first, key=lambda trial: (first[trial], trial))
    for losses in levels[1:]:
        places = [place for place, trial in enumerate(order) if trial in losses]
        came = sorted((order[place] for place in places), key=lambda trial: (losses[trial], trial))
        for place, trial in zip(places, came, strict=True):
            order[place] = trial
    return order


def merits(levels: Sequence[Losses]) -> dict[int, float]:
    """One value a trial on one scale, lower is better: the normal quantile of its place in the order of merit."""
    order = order_of_merit(levels)
    return {trial: NormalDist().inv_cdf((place + 0.5) / len(order)) for place, trial in enumerate(order)}
