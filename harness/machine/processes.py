"""Processes: identity and liveness of workers; devices, cores, threads, memory and arithmetic of this one."""

from __future__ import annotations

import ctypes
import math
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from harness.errors import UsageError
from harness.machine.forks import call_with_torch
from harness.text import counted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Of this container, as it sees itself.
_CONTROL_GROUP = Path("/sys/fs/cgroup")
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# Reading when the machine booted can be off by a second; two processes of one id never start this close together.
_START_TOLERANCE_S = 2.0


def this_process() -> dict[str, Any]:
    """Machine, process id and creation time (s since boot), which tells it from a later process with the same id."""
    return {**_machine(), "pid": os.getpid(), "created": _created_s(psutil.Process())}


def is_gone(process: Mapping[str, Any] | None, *, one_machine: bool) -> bool | None:
    """Whether a process has ended; None if this machine cannot tell, so that the worker's heartbeat must decide.

    ``process`` is a record of :func:`this_process`, empty for a worker that died before it wrote one. ``one_machine``:
    all processes run on this machine, as with SQLite; an earlier boot's have then ended.
    """
    if not process:
        return True
    here = _machine()
    if process["host"] != here["host"]:
        return None
    differs = {key for key in ("boot", "container") if process.get(key) and here[key] and process[key] != here[key]}
    if differs:
        return True if one_machine and "boot" in differs else None
    try:
        running = psutil.Process(int(process["pid"]))
        if running.status() == psutil.STATUS_ZOMBIE:  # killed, and its parent has yet to notice
            return True
        created_s = process.get("created")
        if process.get("start"):  # an older record's, in clock ticks
            created_s = int(process["start"]) / os.sysconf("SC_CLK_TCK")
        return created_s is not None and abs(_created_s(running) - float(created_s)) > _START_TOLERANCE_S
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):  # unreadable, for example without a free file descriptor: unknown, not ended
        return False


def _created_s(process: psutil.Process) -> float:
    """Seconds from boot to the start of a process; unlike the time of day, no change of the clock moves it."""
    return float(process.create_time() - psutil.boot_time())


def _machine() -> dict[str, str]:
    """Host name, the kernel's boot and the container: process ids mean something only where all of them are shared."""
    boot = container = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        container = str(Path("/proc/self/ns/pid").readlink())
    return {"host": os.environ.get("HARNESS_MACHINE") or socket.gethostname(), "boot": boot, "container": container}


def usable_cores() -> int:
    """Cores that this process may use; fewer than the machine has under taskset, or where a container has a share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _of_container("cpu.max") or _of_container("cpu/cpu.cfs_quota_us") + _of_container("cpu/cpu.cfs_period_us")
    return min(cores, math.ceil(share[0] / share[1])) if len(share) == 2 and min(share) > 0 else cores


def free_memory() -> int:
    """Bytes that new processes may take, in a container within its limit."""
    free = float(psutil.virtual_memory().available)
    for limit, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
        folder = "memory." if limit == "max" else "memory/memory."
        for most, now in zip(_of_container(folder + limit), _of_container(folder + used), strict=False):
            free = min(free, most - now)
    return int(free)


def _of_container(name: str) -> tuple[float, ...]:
    """The numbers in a file of this container's control group (Linux, version 2 or 1); none without a limit."""
    try:
        return tuple(map(float, (_CONTROL_GROUP / name).read_text(encoding="utf-8").split()))
    except (OSError, ValueError):  # "max" is not a number
        return ()


def visible_gpus() -> tuple[str, ...]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them.

    CUDA stops reading that list at the first name without a device (-1, or beyond the last), so torch counts them.
    """
    import torch

    count = torch.cuda.device_count()
    named = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return tuple(named[:count]) if named else tuple(map(str, range(count)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Where a sweep runs. ``engine`` is ``local`` or ``ray``; ``address`` and ``gpus_per_worker`` are Ray's.

    ``workers`` None: as many as the study had before, else by :func:`workers_for`; ``lanes`` None: :func:`lanes_for`.
    """

    workers: int | None = None
    lanes: int | None = None
    device: str = "auto"
    engine: str = "local"
    address: str | None = None
    gpus_per_worker: float = 1.0

    @property
    def at_once(self) -> int:
        """Trials at once, at most."""
        return (self.workers or 1) * (self.lanes or 1)


def why_no_cuda() -> str:
    """Why torch has no CUDA device here, in a sentence; empty if it has one."""
    import torch

    with warnings.catch_warnings(record=True) as said:  # torch warns of a driver that is too old
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return ""
        error = ""
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as failure:
            error = str(failure)
    reasons = []
    visible, gpu = os.environ.get("CUDA_VISIBLE_DEVICES"), _listed_gpu()
    if visible is not None:
        reasons.append(f"CUDA_VISIBLE_DEVICES={visible!r} is set, which hides all other GPUs")
    if torch.version.cuda is None:
        reasons.append(f"torch {torch.__version__} is a build without CUDA")
    elif gpu or visible is None:
        lines = [str(warning.message) for warning in said] + [error]
        reasons.append(next(filter(None, lines), "torch finds no device").splitlines()[0].partition(". Please")[0])
    reasons.append(f"nvidia-smi lists {gpu}" if gpu else "nvidia-smi lists no GPU")
    return "; ".join(reasons)


def _listed_gpu() -> str:
    """The first GPU that the driver knows, usable by torch or not; empty if there is no driver, or it fails."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=20)
        return next(iter(done.stdout.splitlines()), "").partition(" (UUID")[0]
    return ""


def device_in_words(device: str) -> str:
    """What trains: ``CUDA (NVIDIA H200)``, or ``the CPU (2 cores)``."""
    if device.startswith("cuda"):
        import torch

        return f"CUDA ({torch.cuda.get_device_name(0)})"
    return f"the CPU ({counted(usable_cores(), 'core')})"


def choose_device(wanted: str) -> str:
    """``auto`` is CUDA if torch finds it, else the CPU; a UsageError if the device is unknown or missing."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise UsageError(f"DEVICE={wanted!r} is not known", "Use auto, cpu or cuda.")
    if wanted == "cpu":
        return wanted
    why_not = call_with_torch(why_no_cuda)
    if wanted == "cuda" and why_not:
        raise UsageError(f"DEVICE=cuda, but torch finds no CUDA device: {why_not}", "Or use cpu.")
    return "cpu" if why_not else "cuda"


def trains_on(wanted: str) -> str:
    """What a sweep trains on, in words; with ``auto`` also why it is not a GPU."""
    device = choose_device(wanted)
    shown = call_with_torch(device_in_words, device)
    why_not = call_with_torch(why_no_cuda) if (wanted, device) == ("auto", "cpu") else ""
    return f"training on {shown}{f'; no CUDA: {why_not}' if why_not else ''}"


def use_threads(n: int) -> None:
    """Set the threads of torch, and of NumPy's and SciPy's linear algebra, which by default uses every core.

    On two cores, two processes of two threads each take ten times as long for a final score's eigenvalues as of one.
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(n)
    threadpool_limits(n, user_api="blas")


def keep_memory() -> None:
    """Keep freed memory in this process; by default glibc returns large blocks to the kernel.

    They come back as new pages, which one thread fills with zeros: a tenth of a training step's time and a fifth of
    Inception's on a virtual machine (docs/lab/2026-11.md).
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, -1)
            # One arena for all threads: other arenas cannot keep large blocks.
            mallopt(_M_ARENA_MAX, 1)


def exact_arithmetic() -> None:
    """On CUDA: full float32 instead of TF32, as the scoring protocols demand, and deterministic cuDNN algorithms."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def cuda_graphs() -> bool:
    """Whether trainings on CUDA may replay their steps as graphs; ``HARNESS_CUDA_GRAPHS=0`` turns that off."""
    return os.environ.get("HARNESS_CUDA_GRAPHS", "1") != "0"


def compiled_graphs() -> bool:
    """Whether those graphs are of compiled steps, off by default: ``HARNESS_CUDA_GRAPHS=compiled``."""
    return os.environ.get("HARNESS_CUDA_GRAPHS") == "compiled"


def on_device(images: Tensor, device: torch.device) -> Tensor:
    """The images, moved to the GPU if they fit: no batch is copied then. The trainer takes both."""
    return images.to(device) if device.type == "cuda" and fits_on(images.nbytes, device) else images


def fits_on(n_bytes: int, device: torch.device) -> bool:
    """Whether images of this many bytes are kept on the GPU: they must take less than a third of its free memory."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return n_bytes < free / 3
