"""A training's whole step, both networks' updates, as one CUDA graph: the host only says which images come next.

Small networks are bound by the host, which launches some 150 kernels a step; a replay is one launch. What a graph needs
(static shapes, no reading back, Adam's step count and the noise generator on the device) holds for every
:class:`~harness.gan.run.Run` whose batches are all of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from harness.errors import Diverged, first_line
from harness.gan.fast.precision import tensor_cores
from harness.gan.run import Run

# Steps before the capture, on another stream, in which libraries choose algorithms and allocate memory.
_WARM_UP = 3


class BufferedBatches:
    """Buffers that a step takes its batches from, filled before each step from the training's own source."""

    def __init__(self, run: Run) -> None:
        self.draw = run.shuffled.next_batch
        self.n_dis, self.flip, self.slot = run.hp.n_dis, run.hp.flip, 0
        shape, device = (run.hp.n_dis, run.hp.batch_size), run.device
        self.index = torch.zeros(shape, dtype=torch.long, device=device)
        self.flipped = torch.zeros(shape, dtype=torch.bool, device=device)

    def fill(self) -> None:
        self.slot = 0
        for slot in range(self.n_dis):
            index, flipped = self.draw()
            self.index[slot].copy_(index, non_blocking=True)
            if flipped is not None:
                self.flipped[slot].copy_(flipped, non_blocking=True)

    def next_batch(self) -> tuple[Tensor, Tensor | None]:
        slot, self.slot = self.slot, self.slot + 1
        return self.index[slot], self.flipped[slot] if self.flip else None


def obstacle(run: Run) -> str:
    """Why its steps cannot be a graph; empty where they can."""
    device = next(run.generator.parameters()).device  # with its number, which the run's may lack
    if device.type != "cuda":
        return "it is not on CUDA"
    if run.images.device != device:
        return "the images are not on the device: they take more than a third of its free memory"
    if run.hp.optimizer != "adam":
        return f"optimizer {run.hp.optimizer} asks the host whether gradients are finite"
    return "" if run.hp.last_batch == "drop" else "batches are not all of one size"


@contextmanager
def compiled(run: Run) -> Iterator[None]:
    """Steps in here, and a graph of one, have each network's operations merged by Inductor; equal up to rounding."""
    before = run.generator, run.discriminator
    merged: Any = [torch.compile(network, dynamic=False) for network in before]
    run.generator, run.discriminator = merged
    try:
        yield
    finally:
        run.generator, run.discriminator = before


def capture(run: Run, *, compiles: bool = False) -> str:
    """Make it play its steps as a graph, compared with the steps; why not, where it does not. Its state stays.

    With ``compiles`` the graph is of the compiled step, and compared with the plain one.
    """
    before, buffers = run.snapshot(None).state, BufferedBatches(run)
    run.next_batch = buffers.next_batch

    def eagerly() -> None:
        buffers.fill()
        run.play_eagerly()

    try:
        with compiled(run) if compiles else nullcontext():
            graph = _captured(run, eagerly, buffers)

        def replay() -> None:
            buffers.fill()
            graph.replay()

        difference = _difference(run, eagerly, replay, before)
    except (RuntimeError, Diverged) as error:
        difference = first_line(error)
    run.load(before)
    if difference:
        run.next_batch = run.shuffled.next_batch
        return difference
    run.replay = replay
    return ""


def _captured(run: Run, eagerly: Callable[[], None], buffers: BufferedBatches) -> torch.cuda.CUDAGraph:
    here = torch.cuda.current_stream(run.device)
    # The default stream cannot be captured. A lane's own can, and no other lane shares the libraries' work space on it.
    is_own = here != torch.cuda.default_stream(run.device)
    stream = here if is_own else torch.cuda.Stream(run.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            eagerly()
    here.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(run.noise_rng)
    buffers.fill()
    # thread_local: other lanes may allocate and copy meanwhile.
    capturing = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
    with tensor_cores(run.hp.precision, run.device), capturing:
        run.play_eagerly()
    return graph


def _difference(run: Run, eagerly: Callable[[], None], replay: Callable[[], None], before: dict[str, Any]) -> str:
    """How two replays differ from two steps, from the same state; empty where they do not."""
    results = []
    for play in (eagerly, replay):
        run.load(before)
        for _ in range(2):
            play()
        results.append(run.snapshot(None).state)
    eager, replayed = results
    if not torch.equal(eager["noise_rng"], replayed["noise_rng"]):
        return "a replay does not draw new noise"
    for network in ("generator", "discriminator"):
        for name, value in eager[network].items():
            if not torch.allclose(value.float(), replayed[network][name].float(), rtol=1e-2, atol=1e-4):
                return f"after two steps {network}.{name} differs from the step without a graph"
    return ""
