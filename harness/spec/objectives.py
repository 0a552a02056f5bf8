"""Several objectives at once: which way each is better, what dominates what, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Objective = Literal["score", "seconds", "precision", "recall"]
MAXIMISED = ("precision", "recall")


def directions(objectives: Sequence[Objective]) -> list[Literal["minimize", "maximize"]]:
    """Optuna's name for which way each is better."""
    return ["maximize" if name in MAXIMISED else "minimize" for name in objectives]


def as_losses(values: Sequence[float], objectives: Sequence[Objective]) -> tuple[float, ...]:
    """The values with those that are maximised negated: lower is better in each."""
    return tuple(-value if name in MAXIMISED else value for value, name in zip(values, objectives, strict=True))


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is at least as good everywhere and better somewhere; lower is better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def front(losses: Sequence[Sequence[float]]) -> list[int]:
    """Positions of those that nothing dominates, in the order given."""
    return [place for place, own in enumerate(losses) if not any(dominates(other, own) for other in losses)]


def dominated_share(own: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """The share of the others that dominate it, from 0 (it is on the front) to 1.

    As a rank it is that of Fonseca and Fleming (1993, section 3), divided by their number, so that it can be compared
    between times with few and with many others.
    """
    return sum(dominates(other, own) for other in others) / len(others) if others else 0.0
