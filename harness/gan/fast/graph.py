"""A training's whole step, both networks' updates, as one CUDA graph: the host only says which images come next.

Small networks are bound by the host, which launches some 150 kernels a step; a replay is one launch. What must hold for
it (static shapes, no reading back, Adam's step count and the noise generator on the device) holds for every
:class:`~harness.gan.run.Run` whose batches are all of one size, and for fused ones. A capture is compared with the step
that it captured before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from harness.errors import Diverged
from harness.gan.fast.precision import tensor_cores
from harness.gan.run import Run

# Steps before the capture, on a stream of their own: libraries choose their algorithms and allocate.
_WARM_UP = 3


class Stepping(Protocol):
    """What steps: a Run, whose only member is itself, or several fused."""

    play: Callable[[], None]

    @property
    def members(self) -> Sequence[Run]: ...

    def play_eagerly(self) -> None: ...


class Feed:
    """Buffers that the step takes its batches from, filled anew before each step."""

    def __init__(self, run: Run) -> None:
        self.run, self.next, self.slot = run, run.next_batch, 0
        shape, device = (run.hp.n_dis, run.hp.batch_size), run.device
        self.index = torch.zeros(shape, dtype=torch.long, device=device)
        self.flipped = torch.zeros(shape, dtype=torch.bool, device=device)
        run.next_batch = self.buffered  # type: ignore[method-assign]

    def fill(self) -> None:
        """Draw the batches of the next step."""
        self.slot = 0
        for slot in range(self.run.hp.n_dis):
            index, flipped = self.next()
            self.index[slot].copy_(index, non_blocking=True)
            if flipped is not None:
                self.flipped[slot].copy_(flipped, non_blocking=True)

    def buffered(self) -> tuple[Tensor, Tensor | None]:
        """In the place of the run's own: the buffers of one update after the other."""
        slot, self.slot = self.slot, self.slot + 1
        return self.index[slot], self.flipped[slot] if self.run.hp.flip else None

    def remove(self) -> None:
        """Give the run its own draws back."""
        self.run.next_batch = self.next  # type: ignore[method-assign]


def obstacle(run: Run) -> str:
    """Why its steps cannot be a graph; empty where they can."""
    place = next(run.generator.parameters()).device  # with its number, which the run's may lack
    if place.type != "cuda":
        return "it is not on CUDA"
    if run.images.device != place:
        return "the images are not on the device: they take more than a third of its free memory"
    return "" if run.hp.last_batch == "drop" else "batches are not all of one size"


def capture(stepping: Stepping) -> str:
    """Make it play its steps as a graph; why not, where it does not, in which case nothing has changed.

    The state is the same before and after.
    """
    before = _states(stepping)
    feeds = [Feed(run) for run in stepping.members]

    def fill() -> None:
        for feed in feeds:
            feed.fill()

    def eagerly() -> None:
        fill()
        stepping.play_eagerly()

    try:
        graph = _captured(stepping, fill)

        def replay() -> None:
            fill()
            graph.replay()

        difference = _difference(stepping, eagerly, replay, before)
    except (RuntimeError, Diverged) as error:
        difference = (str(error).splitlines() or [type(error).__name__])[0]
    _load(stepping, before)
    if difference:
        for feed in feeds:
            feed.remove()
        return difference
    stepping.play = replay
    return ""


def _states(stepping: Stepping) -> list[dict[str, Any]]:
    return [run.snapshot(None).state for run in stepping.members]


def _load(stepping: Stepping, states: list[dict[str, Any]]) -> None:
    for run, state in zip(stepping.members, states, strict=True):
        run.load(state)


def _captured(stepping: Stepping, fill: Callable[[], None]) -> torch.cuda.CUDAGraph:
    run = stepping.members[0]
    stream = torch.cuda.Stream(run.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(run.device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            fill()
            stepping.play_eagerly()
    torch.cuda.current_stream(run.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for member in stepping.members:
        graph.register_generator_state(member.noise_rng)
    fill()
    with tensor_cores(run.hp.precision, run.device), torch.cuda.graph(graph):
        stepping.play_eagerly()
    return graph


def _difference(
    stepping: Stepping, eagerly: Callable[[], None], replay: Callable[[], None], before: list[dict[str, Any]]
) -> str:
    """How two replays differ from two steps, from the same state; empty where they do not."""
    results = []
    for play in (eagerly, replay):
        _load(stepping, before)
        for _ in range(2):
            play()
        results.append(_states(stepping))
    for eager, replayed in zip(*results, strict=True):
        if not torch.equal(eager["noise_rng"], replayed["noise_rng"]):
            return "a replay does not draw new noise"
        for network in ("generator", "discriminator"):
            for name, value in eager[network].items():
                if not torch.allclose(value.float(), replayed[network][name].float(), rtol=1e-2, atol=1e-4):
                    return f"after two steps {network}.{name} is another than without a graph"
    return ""
