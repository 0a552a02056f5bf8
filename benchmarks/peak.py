"""The peak of a process's memory."""

from __future__ import annotations

from pathlib import Path


def peak_mib() -> float:
    """Of this process alone, in MiB (Linux). ``ru_maxrss`` is at least that of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) / 1024
