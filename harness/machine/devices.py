"""Devices, and the machines of a sweep."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UsageError
from harness.machine.forks import call_with_torch
from harness.machine.processes import cuda_is_available


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Where a sweep runs. ``engine`` is ``local`` or ``ray``; ``address`` and ``gpus_per_worker`` are Ray's."""

    workers: int = 1
    device: str = "auto"
    engine: str = "local"
    address: str | None = None
    gpus_per_worker: float = 1.0


def choose_device(wanted: str) -> str:
    """``auto`` becomes ``cuda`` where there is one.

    Raises:
        UsageError: an unknown device, or CUDA where there is none.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise UsageError(f"DEVICE={wanted!r} is not known", "Use auto, cpu or cuda.")
    if wanted == "cpu":
        return wanted
    available = call_with_torch(cuda_is_available)
    if wanted == "cuda" and not available:
        raise UsageError("DEVICE=cuda, but torch finds no CUDA device", "`harness doctor` shows why; or use cpu.")
    return "cuda" if available else "cpu"
