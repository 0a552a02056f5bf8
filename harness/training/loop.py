"""The one loop around ``gan.train`` that keeps a training on disk; its caller scores, prunes, publishes or stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from harness.errors import HarnessError
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, Progress, train
from harness.home import seconds_from_environment
from harness.machine.processes import cuda_graphs
from harness.scoring.fidelity import Scores
from harness.scoring.sampling import GRID_IMAGES
from harness.training.attempt import Attempt


class Degenerate(HarnessError):
    """The configuration makes no generator that can be scored: no network, or constant or non-finite images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint was written. ``mark`` (kimg) is the one of the budget that it answers, if any."""

    kimg: float
    mark: float | None


def checkpoint_every_s() -> float:
    """Seconds between checkpoints that no mark asks for: ``HARNESS_CHECKPOINT_S``, 60 by default.

    Raises:
        UsageError: it is not a number of seconds.
    """
    return seconds_from_environment("HARNESS_CHECKPOINT_S", 60.0)


def train_on_disk(
    attempt: Attempt,
    images_NHWC: Tensor,
    *,
    budget: Budget,
    stop: Callable[[], bool],
    checkpoint_s: float,
    grid_images: int = GRID_IMAGES,
    fresh_grids: bool = False,
) -> Iterator[Progress | Saved | Snapshot]:
    """Train from where an attempt's checkpoint is to the end of the budget.

    Args:
        attempt: opened; keeps curve, checkpoints and grids.
        images_NHWC: uint8, shape (N, H, W, C).
        budget: length, and marks at which a grid is drawn.
        stop: asked after every Progress; a checkpoint follows where it says yes. The caller then stops iterating.
        checkpoint_s: longest time (s) between checkpoints.
        grid_images: how many are drawn at each mark.
        fresh_grids: from a new z at each mark, not the same.

    Yields:
        Progress; Saved after each checkpoint; after that, at marks, the Snapshot whose grid was drawn.

    Raises:
        Diverged: a gradient was not finite.
        Fenced: the attempt was declared dead.
        OSError: a checkpoint cannot be written.
    """
    for event in train(
        attempt.hp,
        images_NHWC,
        budget=budget,
        seed=attempt.seed,
        device=attempt.device,
        resume=attempt.state,
        snapshot_now=lambda: stop() or attempt.due(checkpoint_s),
        graph=cuda_graphs(),
    ):
        if isinstance(event, Progress):
            attempt.progress(event)
            yield event
            continue
        attempt.save(event)
        yield Saved(kimg=event.kimg, mark=event.mark)
        if event.mark is not None:
            attempt.grid(event, event.mark, n=grid_images, seed=event.step if fresh_grids else None)
            yield event


def checked(scores: Scores) -> Scores:
    """The scores, if they are valid.

    Raises:
        Degenerate: they are not, with the reason.
    """
    if scores.reason:
        raise Degenerate(scores.reason)
    return scores
