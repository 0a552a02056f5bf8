"""Which process runs a trial, whether it still lives, and how many cores there are."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def this_process() -> dict[str, Any]:
    """Host, process id and start of this process; the start tells it from a later one with the same id."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": _start_of(os.getpid())}


def is_gone(process: Mapping[str, Any] | None) -> bool:
    """Whether a process was on this machine and is no more; one of another machine counts as alive."""
    if not process:
        return True
    if process["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(process["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    start = _start_of(int(process["pid"]))
    return bool(process.get("start", start) != start)


def usable_cores() -> int:
    """Cores that this process may use; fewer than the machine has inside a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def exact_arithmetic() -> None:
    """On CUDA: float32 in full, not TF32, as the protocols say; and cuDNN's deterministic algorithms."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def _start_of(pid: int) -> str:
    """The kernel's start time of a process in clock ticks since boot; empty where there is no /proc."""
    try:
        # The name in parentheses may itself hold spaces and parentheses: count from behind it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def on_device(images: Tensor, device: torch.device) -> Tensor:
    """The images on the GPU where they take less than a third of what is free there, else where they are.

    The trainer takes batches from either; on the GPU no batch waits for the bus.
    """
    if device.type != "cuda":
        return images
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return images.to(device) if images.numel() * images.element_size() < free / 3 else images
