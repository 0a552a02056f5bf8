"""What a training has done so far, as each of its checkpoints keeps it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Self


@dataclass(slots=True)
class History:
    """Curve and scores of a training. Part of the checkpoint, so that both agree after a crash.

    Attributes:
        identity: of the training: a checkpoint of another configuration, seed or images has another one.
        curve: means over windows of steps, with ``kimg`` and ``images_per_s``.
        rungs: rung scores, by images shown.
        watched: measures of the samples' diversity by name, by images shown.
    """

    identity: str
    curve: list[dict[str, float]] = field(default_factory=list)
    rungs: dict[int, float] = field(default_factory=dict)
    watched: dict[int, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A history of :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        kept = json.loads(text)
        return cls(
            identity=kept["identity"],
            curve=list(kept["curve"]),
            rungs={int(step): value for step, value in kept["rungs"].items()},
            watched={int(step): values for step, values in kept.get("watched", {}).items()},
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def kimg(self) -> float:
        """How far the curve reaches."""
        return self.curve[-1]["kimg"] if self.curve else 0.0

    def trained_s(self, until_kimg: float = math.inf) -> float:
        """Seconds of training up to ``until_kimg``, over all attempts, without scoring and checkpoints.

        Rates are of windows of the curve; a mark within a window, or after the last one, counts at the nearest rate.
        """
        seconds = reached = 0.0
        rate = math.inf
        for row in self.curve:
            rate = row["images_per_s"]
            if row["kimg"] > until_kimg:
                break
            seconds += 1000 * (row["kimg"] - reached) / rate
            reached = row["kimg"]
        if math.isfinite(until_kimg):
            seconds += 1000 * max(0.0, until_kimg - reached) / rate
        return seconds
